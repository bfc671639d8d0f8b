// SPDX-License-Identifier: GPL-2.0

//! The result of a probe and the state of a bound device, as files of the device in sysfs.
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use super::device::Device;
use crate::abstractions::bindings;
use core::ptr::NonNull;
use kernel::{
    container_of,
    device::Core,
    error::to_result,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// The state of a bound device, which is shown in its file [`STATE_FILE`].
pub trait StateAttribute: Send + Sync {
    /// Returns the state. May sleep. Must not take the device lock.
    fn state(&self) -> &'static CStr;

    /// Sets the state to what a program has written to the file, without spaces around it. May
    /// sleep. Must not take the device lock. The unbinding of the device waits for this, once the
    /// driver's data was dropped. The deletion of a bound device waits for it before the device is
    /// unbound.
    fn set_state(&self, state: &[u8]) -> Result {
        let _ = state;
        Err(EINVAL)
    }
}

/// The name of the file. Programs may poll it, if the driver notifies them of changes
/// ([`RegionAccess::notify_attribute`]).
///
/// [`RegionAccess::notify_attribute`]: super::RegionAccess::notify_attribute
pub const STATE_FILE: &CStr = c"state";

/// What a file shows.
enum Text {
    /// Text that does not change.
    Fixed(CString),
    /// The state of the device.
    State(Arc<dyn StateAttribute>),
}

/// A file with a line of text.
struct Line {
    attr: bindings::device_attribute,
    text: Text,
}

impl Line {
    fn new((name, text): (&'static CStr, Text)) -> Self {
        let is_writable = matches!(text, Text::State(_));

        Self {
            attr: bindings::device_attribute {
                // Without lockdep there are no more fields.
                #[allow(clippy::needless_update)]
                attr: bindings::attribute {
                    name: name.as_char_ptr(),
                    mode: if is_writable { 0o644 } else { 0o444 },
                    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
                    key: kernel::static_lock_class!().as_ptr(),
                    ..pin_init::zeroed()
                },
                __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
                    show: Some(Self::show_callback),
                },
                __bindgen_anon_2: bindings::device_attribute__bindgen_ty_2 {
                    store: is_writable.then_some(Self::store_callback),
                },
            },
            text,
        }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `attr` must be that of a [`Line`]. `buf` must be a page.
    unsafe extern "C" fn show_callback(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: By the safety requirements. The line is dropped after sysfs has removed the file,
        // which waits for this call.
        let this = unsafe { &*container_of!(attr, Self, attr) };

        let text = match &this.text {
            Text::Fixed(text) => text,
            Text::State(state) => state.state(),
        };
        // SAFETY: By the safety requirements `buf` is a page. The format takes a C string.
        unsafe { bindings::sysfs_emit(buf, c"%s\n".as_char_ptr(), text.as_char_ptr()) as isize }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `attr` must be that of a [`Line`]. `buf` must have `len` bytes.
    unsafe extern "C" fn store_callback(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        buf: *const c_char,
        len: usize,
    ) -> isize {
        // SAFETY: By the safety requirements. The line is dropped after sysfs has removed the file,
        // which waits for this call.
        let (this, value) = unsafe {
            (
                &*container_of!(attr, Self, attr),
                core::slice::from_raw_parts(buf.cast::<u8>(), len),
            )
        };

        let result = match &this.text {
            Text::State(state) => state.set_state(value.trim_ascii()),
            Text::Fixed(_) => Err(EINVAL),
        };
        match result {
            Ok(()) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }
}

/// Two or three files in a directory of a device.
///
/// # Invariants
///
/// The device is registered, and has `group`. `group` has `attributes`, which are those of `lines`
/// and `state`.
pub(super) struct Status {
    dev: NonNull<bindings::device>,
    group: KBox<bindings::attribute_group>,
    _attributes: KBox<[*mut bindings::attribute; 4]>,
    _lines: KBox<[Line; 2]>,
    _state: Option<KBox<Line>>,
}

// SAFETY: Files may be removed by any thread.
unsafe impl Send for Status {}

impl Status {
    /// Creates the files of a device, each with its name and its text, and one for its state. May
    /// sleep.
    ///
    /// # Safety
    ///
    /// The device must be registered. It must stay so until the returned value was dropped.
    pub(super) unsafe fn new(
        dev: &Device<Core<'_>>,
        directory: &'static CStr,
        lines: [(&'static CStr, CString); 2],
        state: Option<Arc<dyn StateAttribute>>,
    ) -> Result<Self> {
        let lines = lines.map(|(name, text)| Line::new((name, Text::Fixed(text))));
        let mut lines = KBox::new(lines, GFP_KERNEL)?;
        let mut state = match state {
            Some(state) => {
                let line = Line::new((STATE_FILE, Text::State(state)));
                Some(KBox::new(line, GFP_KERNEL)?)
            }
            None => None,
        };
        let [first, second] = &mut *lines;
        // The first null pointer ends the list.
        let mut attributes = KBox::new(
            [
                &raw mut first.attr.attr,
                &raw mut second.attr.attr,
                state
                    .as_mut()
                    .map_or(core::ptr::null_mut(), |line| &raw mut line.attr.attr),
                core::ptr::null_mut(),
            ],
            GFP_KERNEL,
        )?;
        let group = KBox::new(
            bindings::attribute_group {
                name: directory.as_char_ptr(),
                __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
                    attrs: attributes.as_mut_ptr(),
                },
                ..pin_init::zeroed()
            },
            GFP_KERNEL,
        )?;

        // SAFETY: The device is registered. The group, and what it refers to, are valid.
        to_result(unsafe { bindings::sysfs_create_group(&raw mut (*dev.as_raw()).kobj, &*group) })?;
        // INVARIANT: The device was just given the group. It stays registered by the safety
        // requirements.
        Ok(Self {
            dev: NonNull::new(dev.as_raw()).ok_or(EINVAL)?,
            group,
            _attributes: attributes,
            _lines: lines,
            _state: state,
        })
    }
}

impl Drop for Status {
    /// Removes the files. Waits for their readers.
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::sysfs_remove_group(&raw mut (*self.dev.as_ptr()).kobj, &*self.group) };
    }
}

#[kunit_tests(pmem_rs_nd_status)]
mod tests {
    use super::*;
    use kernel::{
        device::{
            self,
            Bound, //
        },
        faux, //
    };

    #[test]
    fn files_come_and_go() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nd_status", None)?;
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // SAFETY: The device is valid for as long as `faux`. It is not on the nd bus, which the
        // files do not depend on.
        let dev = unsafe { &*core::ptr::from_ref(generic).cast::<Device<Core<'_>>>() };
        let lines = || -> Result<_> {
            Ok([
                (c"status", c"bound".try_into()?),
                (c"mode", c"none".try_into()?),
            ])
        };

        // A directory that was not removed could not be made again.
        for state in [
            None,
            Some(Arc::new(Asleep, GFP_KERNEL)? as Arc<dyn StateAttribute>),
        ] {
            // SAFETY: The device is registered for as long as `faux`.
            drop(unsafe { Status::new(dev, c"pmem_rs_test", lines()?, state) }?);
        }
        Ok(())
    }

    struct Asleep;

    impl StateAttribute for Asleep {
        fn state(&self) -> &'static CStr {
            c"asleep"
        }
    }
}
