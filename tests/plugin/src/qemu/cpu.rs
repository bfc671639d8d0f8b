// SPDX-License-Identifier: GPL-2.0

//! The CPU that has called the plugin, and its registers.

use std::ffi::{CStr, CString, c_uint};

use super::bindings::{
    Array, Handle, Id, g_array_unref, g_byte_array_set_size, qemu_plugin_get_registers,
    qemu_plugin_read_memory_vaddr, qemu_plugin_read_register,
};
use crate::LINE_LIMIT;

/// A register of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A general register, by its number in instructions.
    General(u8),
    /// The address of the page tables.
    Cr3,
}

impl Register {
    pub const RSP: Register = Register::General(4);
    pub const RSI: Register = Register::General(6);
    pub const RDI: Register = Register::General(7);
}

/// The names of general registers, by number.
const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The registers as QEMU names them, the same for all CPUs.
pub(super) struct Registers {
    general: [*mut Handle; GENERAL.len()],
    cr3: *mut Handle,
}

impl Registers {
    /// Looks up the registers. Must be called when QEMU has made a CPU.
    pub(super) fn find() -> Option<Registers> {
        // SAFETY: QEMU allows this call in that callback. The array has descriptions, whose names
        // live as long as QEMU.
        unsafe {
            let array = qemu_plugin_get_registers();
            let all = std::slice::from_raw_parts((*array).data, (*array).len as usize);
            let find = |name: &str| {
                let name = CString::new(name).ok()?;
                let found = all
                    .iter()
                    .find(|one| CStr::from_ptr(one.name) == name.as_c_str());
                found.map(|one| one.handle)
            };
            let registers = (|| {
                let mut general = [std::ptr::null_mut(); GENERAL.len()];
                for (register, name) in general.iter_mut().zip(GENERAL) {
                    *register = find(name)?;
                }
                let cr3 = find("cr3")?;
                Some(Registers { general, cr3 })
            })();
            g_array_unref(array.cast());
            registers
        }
    }
}

/// The state that calls of QEMU need.
pub(super) struct Connection {
    pub(super) id: Id,
    pub(super) name: &'static str,
    pub(super) registers: Option<Registers>,
    /// A buffer for the results of QEMU; emptied before each use.
    pub(super) scratch: *mut Array<u8>,
}

// SAFETY: The pointers are to objects of QEMU that live as long as it does; what is behind
// `scratch` is used only under the lock of `LOADED`.
unsafe impl Send for Connection {}

/// The CPU that has called the plugin.
pub struct Cpu<'a> {
    pub(super) index: c_uint,
    pub(super) connection: &'a Connection,
}

impl Cpu<'_> {
    /// The contents of a register. Not available in callbacks for stores.
    pub fn register(&self, register: Register) -> Option<u64> {
        let registers = self.connection.registers.as_ref()?;
        let handle = match register {
            Register::General(number) => *registers.general.get(usize::from(number))?,
            Register::Cr3 => registers.cr3,
        };
        let bytes = self.connection.read(|scratch| {
            // SAFETY: The register was found by QEMU's own list.
            let len = unsafe { qemu_plugin_read_register(handle, scratch) };
            len >= 0
        })?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The contents of the guest's memory at a virtual address.
    pub fn memory(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.connection.read(|scratch| {
            // SAFETY: QEMU makes the array long enough, and returns false if there is no such
            // memory.
            unsafe { qemu_plugin_read_memory_vaddr(address, scratch, len) }
        })
    }

    /// The line that the guest's registers point to.
    pub(super) fn line(&self) -> Result<String, String> {
        let (Some(address), Some(len)) =
            (self.register(Register::RDI), self.register(Register::RSI))
        else {
            return Err("cannot read registers".to_owned());
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 || len > LINE_LIMIT {
            return Err(format!("a line of {len} bytes"));
        }
        let line = self
            .memory(address, len)
            .ok_or_else(|| format!("cannot read the guest's memory at {address:#x}"))?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}

impl Connection {
    /// Calls a function of QEMU that fills the buffer, and returns its contents unless it fails.
    fn read(&self, ask: impl FnOnce(*mut Array<u8>) -> bool) -> Option<&[u8]> {
        // SAFETY: `scratch` is a `GByteArray` that only this object uses.
        unsafe { g_byte_array_set_size(self.scratch, 0) };
        if !ask(self.scratch) {
            return None;
        }
        // SAFETY: The array has `len` initialised bytes at `data`.
        Some(unsafe {
            let array = &*self.scratch;
            std::slice::from_raw_parts(array.data, array.len as usize)
        })
    }
}
