// SPDX-License-Identifier: GPL-2.0

//! A provider of persistent memory whose media errors are injected.
//!
//! Registers an nvdimm bus with one region, without labels, over memory that the command line has
//! left unused (`memmap=SIZE$START`, `mem=`). The kernel's own `nfit_test` only works with drivers
//! that were built with its wrappers. In debugfs, under `injector`:
//!
//! - `inject`: writing `ADDRESS LENGTH` makes these bytes bad, and notifies libnvdimm; with
//!   `ADDRESS LENGTH DISK` they are bytes of the region that this disk is in;
//! - `fail`: writing `ADDRESS` does to its page what the kernel does after a machine check; with
//!   `ADDRESS DELAY` the page is removed from the linear mapping as many milliseconds later;
//! - `limit`: the maximum number of bytes that are cleared; with 0 clearing fails;
//! - `clears`: all requests to clear errors so far, one `ADDRESS LENGTH` a line.
//!
//! The memory itself is not changed: it reads as before. Not a part of the driver.

use core::{
    borrow::Borrow,
    ptr::NonNull, //
};
use kernel::{
    debugfs::File,
    device,
    error::to_result,
    faux,
    fmt,
    page::PAGE_SHIFT,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        global_lock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSliceReader, //
};

/// With the patches of `upstream/`, a folder knows the module that its files belong to.
#[cfg(CONFIG_BLK_DEV_PMEM_RUST)]
type Dir = kernel::debugfs::Dir<LocalModule>;
#[cfg(not(CONFIG_BLK_DEV_PMEM_RUST))]
use kernel::debugfs::Dir;

/// `struct nvdimm_bus` and other types, only the addresses of which are used.
#[repr(C)]
struct Opaque([u8; 0]);

/// `struct nd_cmd_ars_cap`: what errors can be found and cleared in a range.
#[repr(C, packed)]
struct Capabilities {
    address: u64,
    length: u64,
    status: u32,
    max_ars_out: u32,
    clear_err_unit: u32,
    flags: u16,
    reserved: u16,
}

/// `struct nd_cmd_clear_error`.
#[repr(C, packed)]
struct ClearError {
    address: u64,
    length: u64,
    status: u32,
    reserved: [u8; 4],
    cleared: u64,
}

const ND_CMD_ARS_CAP: c_uint = 1;
const ND_CMD_CLEAR_ERROR: c_uint = 4;
/// Errors of persistent memory can be found (`ND_ARS_PERSISTENT`), in the upper half of the status.
const PERSISTENT: u32 = 2 << 16;
/// The granularity of errors, finer than a sector as in firmware.
const UNIT: u32 = 256;

extern "C" {
    // From libnvdimm.c.
    fn injector_bus_register(parent: *mut c_void) -> *mut Opaque;
    fn injector_region_create(bus: *mut Opaque, start: u64, size: u64) -> *mut Opaque;
    fn injector_region_of(disk: *const c_char) -> *mut Opaque;
    fn injector_bus_of(region: *mut Opaque) -> *mut Opaque;
    fn injector_region_notify(region: *mut Opaque);
    fn injector_set_mce_nospec(pfn: c_ulong) -> c_int;

    // From the kernel.
    fn nvdimm_bus_unregister(bus: *mut Opaque);
    fn nvdimm_bus_add_badrange(bus: *mut Opaque, address: u64, length: u64) -> c_int;
    fn memory_failure(pfn: c_ulong, flags: c_int) -> c_int;
}

global_lock! {
    // SAFETY: Initialised with the module, before there is a bus.
    unsafe(uninit) static CLEARS: Mutex<KVec<(u64, u64)>> = KVec::new();
}

/// How many bytes are cleared at most.
static LIMIT: Atomic<u64> = Atomic::new(u64::MAX);

/// Serves the commands of the bus.
///
/// # Safety
///
/// For libnvdimm only: `buffer` must have `len` bytes with no other user, and `status` must be
/// valid for writing.
#[no_mangle]
unsafe extern "C" fn injector_command(
    _desc: *mut Opaque,
    nvdimm: *mut Opaque,
    command: c_uint,
    buffer: *mut c_void,
    len: c_uint,
    status: *mut c_int,
) -> c_int {
    let len = len as usize;
    let result = match command {
        ND_CMD_ARS_CAP if nvdimm.is_null() && len >= size_of::<Capabilities>() => {
            // SAFETY: By the safety requirements and the length. The type has no alignment.
            let capabilities = unsafe { &mut *buffer.cast::<Capabilities>() };
            capabilities.status = PERSISTENT;
            capabilities.max_ars_out = 4096;
            capabilities.clear_err_unit = UNIT;
            Ok(())
        }
        ND_CMD_CLEAR_ERROR if nvdimm.is_null() && len >= size_of::<ClearError>() => {
            // SAFETY: By the safety requirements and the length. The type has no alignment.
            clear(unsafe { &mut *buffer.cast::<ClearError>() })
        }
        _ => return ENOTTY.to_errno(),
    };

    // `status` has the result of the firmware; the return value is the result of the transport.
    // SAFETY: By the safety requirements.
    unsafe { *status = result.err().map_or(0, |err| err.to_errno()) };
    0
}

fn clear(request: &mut ClearError) -> Result {
    let (address, length) = (request.address, request.length);
    CLEARS.lock().push((address, length), GFP_KERNEL)?;

    request.status = 0;
    request.cleared = length.min(LIMIT.load(Relaxed));
    if request.cleared == 0 {
        return Err(EIO);
    }
    Ok(())
}

/// The bus, and the region on it.
#[derive(Clone, Copy)]
struct Provider {
    bus: NonNull<Opaque>,
    region: NonNull<Opaque>,
}

// SAFETY: Both may be used by any thread.
unsafe impl Send for Provider {}
// SAFETY: Both may be used by any thread.
unsafe impl Sync for Provider {}

/// What is written to a file: up to two numbers, decimal or, with `0x`, hexadecimal, and the path
/// of a disk.
struct Command {
    first: u64,
    second: Option<u64>,
    disk: Option<CString>,
}

impl Command {
    fn read(reader: &mut UserSliceReader) -> Result<Self> {
        let mut text = [0; 64];
        let text = text.get_mut(..reader.len()).ok_or(EINVAL)?;
        reader.read_slice(text)?;

        let number = |word: &str| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        let mut words = core::str::from_utf8(text)
            .map_err(|_| EINVAL)?
            .split_whitespace();
        let first = words.next().ok_or(EINVAL)?;
        Ok(Self {
            first: number(first).map_err(|_| EINVAL)?,
            second: words.next().map(number).transpose().map_err(|_| EINVAL)?,
            disk: words
                .next()
                .map(|path| CString::try_from_fmt(fmt!("{path}")))
                .transpose()?,
        })
    }
}

fn inject(provider: &Provider, reader: &mut UserSliceReader) -> Result {
    let command = Command::read(reader)?;
    let length = command.second.ok_or(EINVAL)?;

    // SAFETY: The files are removed before the bus. The test keeps the disk.
    unsafe {
        let (bus, region) = match &command.disk {
            Some(disk) => {
                let region = injector_region_of(disk.as_char_ptr());
                let region = NonNull::new(region).ok_or(ENODEV)?.as_ptr();
                (injector_bus_of(region), region)
            }
            None => (provider.bus.as_ptr(), provider.region.as_ptr()),
        };
        to_result(nvdimm_bus_add_badrange(bus, command.first, length))?;
        injector_region_notify(region);
    }
    Ok(())
}

fn fail(_: &(), reader: &mut UserSliceReader) -> Result {
    let Command {
        first: address,
        second: delay,
        ..
    } = Command::read(reader)?;
    let pfn = (address >> PAGE_SHIFT) as c_ulong;

    // As `uc_decode_notifier()` does in arch/x86/kernel/cpu/mce/core.c.
    // SAFETY: May sleep here. Only root can write to the file.
    unsafe {
        to_result(memory_failure(pfn, 0))?;
        if let Some(delay) = delay {
            fsleep(Delta::from_millis(delay.try_into()?));
        }
        to_result(injector_set_mce_nospec(pfn))
    }
}

fn show_clears(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (address, length) in CLEARS.lock().iter() {
        writeln!(f, "{address:#x} {length}")?;
    }
    Ok(())
}

fn show_limit(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", LIMIT.load(Relaxed))
}

fn set_limit(_: &(), reader: &mut UserSliceReader) -> Result {
    LIMIT.store(Command::read(reader)?.first, Relaxed);
    Ok(())
}

/// Returns the value of a parameter, which kernel 7.2 gives as a reference.
fn value<T: Copy>(value: impl Borrow<T>) -> T {
    *value.borrow()
}

/// Returns the `struct device` of a device. That of `faux` is bound since kernel 7.3.
fn raw<Ctx: device::DeviceContext>(dev: &device::Device<Ctx>) -> *mut c_void {
    // CAST: `device::Device` is a transparent wrapper of `struct device`.
    core::ptr::from_ref(dev).cast_mut().cast()
}

/// The registration of the bus, and of all its devices.
struct Bus(NonNull<Opaque>);

// SAFETY: A bus may be unregistered by any thread.
unsafe impl Send for Bus {}
// SAFETY: A shared reference has no methods.
unsafe impl Sync for Bus {}

impl Drop for Bus {
    fn drop(&mut self) {
        // SAFETY: The bus was registered.
        unsafe { nvdimm_bus_unregister(self.0.as_ptr()) };
    }
}

/// Frees the list of requests, which is static and so is never dropped.
struct Clears;

impl Drop for Clears {
    fn drop(&mut self) {
        *CLEARS.lock() = KVec::new();
    }
}

/// The module. Fields are in the order in which they must be dropped.
struct Injector {
    _inject: Pin<KBox<File<Provider>>>,
    _others: [Pin<KBox<File<()>>>; 3],
    _bus: Bus,
    // After the bus, whose commands add to it.
    _clears: Clears,
    _parent: faux::Registration,
}

impl kernel::Module for Injector {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Called once, since a module is initialised once.
        unsafe { CLEARS.init() };
        let parent = faux::Registration::new(c"injector", None)?;

        // SAFETY: The parent is a device, and outlives the bus.
        let bus = unsafe { injector_bus_register(raw(parent.as_ref().as_ref())) };
        let bus = Bus(NonNull::new(bus).ok_or(ENXIO)?);
        // SAFETY: The bus is registered. The parameters name memory that is reserved for this
        // module.
        let region = unsafe {
            injector_region_create(
                bus.0.as_ptr(),
                value(module_parameters::start.value()),
                value(module_parameters::size.value()),
            )
        };
        let provider = Provider {
            bus: bus.0,
            region: NonNull::new(region).ok_or(ENXIO)?,
        };

        let dir = Dir::new(c"injector");
        Ok(Self {
            _inject: KBox::pin_init(
                dir.write_callback_file(c"inject", provider, &inject),
                GFP_KERNEL,
            )?,
            _others: [
                KBox::pin_init(dir.write_callback_file(c"fail", (), &fail), GFP_KERNEL)?,
                KBox::pin_init(
                    dir.read_write_callback_file(c"limit", (), &show_limit, &set_limit),
                    GFP_KERNEL,
                )?,
                KBox::pin_init(
                    dir.read_callback_file(c"clears", (), &show_clears),
                    GFP_KERNEL,
                )?,
            ],
            _bus: bus,
            _clears: Clears,
            _parent: parent,
        })
    }
}

module! {
    type: Injector,
    name: "injector",
    authors: ["The pmem-rs authors"],
    description: "A provider of persistent memory with injected media errors",
    license: "GPL v2",
    params: {
        start: u64 {
            default: 0,
            description: "Start of the memory",
        },
        size: u64 {
            default: 0,
            description: "Size of the memory in bytes",
        },
    },
}
