// SPDX-License-Identifier: GPL-2.0

//! The connection to QEMU: the part of its plugin interface that is needed, in version 4 (QEMU 9.2 and later).
//!
//! Header: `include/plugins/qemu-plugin.h` of QEMU.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::count::{Block, Counter, Map};
use crate::order::{LINE_LIMIT, MARK, Order};

type Id = u64;

/// The version of the interface that this was written for. QEMU looks at it.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

#[repr(C)]
struct Score {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Tb {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Insn {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Register {
    _opaque: [u8; 0],
}

/// A number for each CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct PerCpu {
    score: *mut Score,
    offset: usize,
}

#[repr(C)]
struct RegisterDescription {
    handle: *mut Register,
    name: *const c_char,
    feature: *const c_char,
}

/// GLib's `GArray` and `GByteArray`, as far as they are public.
#[repr(C)]
struct Array<T> {
    data: *mut T,
    len: c_uint,
}

/// What `qemu_plugin_install` gets; QEMU has more in it.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    min: c_int,
    current: c_int,
    system_emulation: bool,
    cpus: c_int,
}

type CpuCallback = extern "C" fn(Id, c_uint);
type TranslateCallback = extern "C" fn(Id, *mut Tb);
type ExecuteCallback = extern "C" fn(c_uint, *mut c_void);

/// The callback reads registers (`QEMU_PLUGIN_CB_R_REGS`).
const READS_REGISTERS: c_int = 1;
/// The callback runs unless the number is the one given (`QEMU_PLUGIN_COND_NE`).
const UNLESS_EQUAL: c_int = 3;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: CpuCallback);
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: TranslateCallback);
    fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        tb: *mut Tb,
        callback: ExecuteCallback,
        flags: c_int,
        condition: c_int,
        entry: PerCpu,
        immediate: u64,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        callback: ExecuteCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut Score;
    fn qemu_plugin_u64_set(entry: PerCpu, cpu: c_uint, value: u64);
    fn qemu_plugin_get_registers() -> *mut Array<RegisterDescription>;
    fn qemu_plugin_read_register(register: *mut Register, to: *mut Array<u8>) -> c_int;
    fn qemu_plugin_read_memory_vaddr(address: u64, to: *mut Array<u8>, len: usize) -> bool;

    // GLib, which QEMU is linked with.
    fn g_byte_array_new() -> *mut Array<u8>;
    fn g_byte_array_set_size(array: *mut Array<u8>, len: c_uint) -> *mut Array<u8>;
    fn g_array_unref(array: *mut c_void);
}

/// Everything that callbacks share.
struct Plugin {
    out: File,
    /// Not zero while counting.
    counting: PerCpu,
    registers: Option<Registers>,
    /// What callbacks of blocks get, one for each block however often it is translated. They stay for ever, as
    /// QEMU keeps them.
    blocks: HashMap<Block, &'static Block>,
    map: Map,
    counter: Counter,
    /// For what QEMU has to say; emptied before each use.
    scratch: *mut Array<u8>,
}

struct Registers {
    rsp: *mut Register,
    rdi: *mut Register,
    rsi: *mut Register,
}

// SAFETY: The pointers are to objects of QEMU that live as long as it does; what is behind `scratch` is used by
// nobody else, and only by who holds the lock of `PLUGIN`.
unsafe impl Send for Plugin {}

static PLUGIN: Mutex<Option<Plugin>> = Mutex::new(None);

fn plugin() -> MutexGuard<'static, Option<Plugin>> {
    PLUGIN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called by QEMU when it has loaded the plugin. Anything but zero makes QEMU end.
///
/// # Safety
///
/// The arguments must be as QEMU's header has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU says so.
    let info = unsafe { &*info };
    // SAFETY: QEMU passes a string.
    let target = unsafe { CStr::from_ptr(info.target) };
    if target != c"x86_64" || !info.system_emulation || info.cpus != 1 {
        eprintln!("counter: this is for an x86-64 machine with one CPU (-smp 1)");
        return 1;
    }
    let mut out = None;
    for index in 0..argc as usize {
        // SAFETY: QEMU passes so many strings.
        let argument = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        out = argument.strip_prefix("out=").map(str::to_owned);
    }
    let out = match out.as_deref().map(File::create) {
        Some(Ok(out)) => out,
        Some(Err(error)) => {
            eprintln!("counter: cannot write the file that out= names: {error}");
            return 1;
        }
        None => {
            eprintln!("counter: out=FILE says where counts are written to, and is missing");
            return 1;
        }
    };
    // SAFETY: The functions may be called here, and take numbers and functions of the right types.
    unsafe {
        let counting = PerCpu {
            score: qemu_plugin_scoreboard_new(size_of::<u64>()),
            offset: 0,
        };
        *plugin() = Some(Plugin {
            out,
            counting,
            registers: None,
            blocks: HashMap::new(),
            map: Map::default(),
            counter: Counter::default(),
            scratch: g_byte_array_new(),
        });
        qemu_plugin_register_vcpu_init_cb(id, started);
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    }
    0
}

/// The CPU exists: looks for its registers.
extern "C" fn started(_: Id, _: c_uint) {
    // SAFETY: This is the callback where QEMU allows that. The array is of descriptions, with names that stay.
    let registers = unsafe {
        let array = qemu_plugin_get_registers();
        let all = std::slice::from_raw_parts((*array).data, (*array).len as usize);
        let find = |name: &CStr| {
            let found = all.iter().find(|one| CStr::from_ptr(one.name) == name);
            found.map(|one| one.handle)
        };
        let registers = (|| {
            Some(Registers {
                rsp: find(c"rsp")?,
                rdi: find(c"rdi")?,
                rsi: find(c"rsi")?,
            })
        })();
        g_array_unref(array.cast());
        registers
    };
    if registers.is_none() {
        eprintln!("counter: QEMU does not show the registers");
    }
    if let Some(plugin) = plugin().as_mut() {
        plugin.registers = registers;
    }
}

/// A block was translated: asks QEMU to say when it is executed, if there is counting then.
extern "C" fn translated(_: Id, tb: *mut Tb) {
    let mut plugin = plugin();
    let Some(plugin) = plugin.as_mut() else {
        return;
    };
    // SAFETY: QEMU passes a block, which has that many instructions, at least one.
    let (start, len) = unsafe { (qemu_plugin_tb_vaddr(tb), qemu_plugin_tb_n_insns(tb)) };
    let mut last_repeats = None;
    for index in 0..len {
        // SAFETY: As above.
        let insn = unsafe { qemu_plugin_tb_get_insn(tb, index) };
        let mut bytes = [0; MARK.len()];
        // SAFETY: `bytes` has room for so many.
        let read = unsafe {
            let size = qemu_plugin_insn_size(insn).min(bytes.len());
            qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), size)
        };
        if bytes == MARK {
            // SAFETY: The callback takes no data.
            unsafe {
                qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    marked,
                    READS_REGISTERS,
                    std::ptr::null_mut(),
                )
            };
        }
        if index + 1 == len && repeats(&bytes[..read.min(MARK.len())]) {
            // SAFETY: As above.
            last_repeats = Some(unsafe { qemu_plugin_insn_vaddr(insn) });
        }
    }
    let block = Block {
        start,
        instructions: len as u64,
        last_repeats,
    };
    let block: &'static Block = plugin
        .blocks
        .entry(block)
        .or_insert_with(|| Box::leak(Box::new(block)));
    // SAFETY: The callback gets what it expects.
    unsafe {
        qemu_plugin_register_vcpu_tb_exec_cond_cb(
            tb,
            executed,
            READS_REGISTERS,
            UNLESS_EQUAL,
            plugin.counting,
            0,
            (&raw const *block).cast_mut().cast(),
        );
    }
}

/// Whether an instruction is one on strings with a `rep` prefix.
fn repeats(bytes: &[u8]) -> bool {
    let mut prefixed = false;
    for &byte in bytes {
        match byte {
            0xf2 | 0xf3 => prefixed = true,
            // Other prefixes: sizes, segments and REX.
            0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40..=0x4f => {}
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => return prefixed,
            _ => return false,
        }
    }
    false
}

/// A block is about to be executed, and there is counting.
extern "C" fn executed(_: c_uint, data: *mut c_void) {
    let mut plugin = plugin();
    let Some(plugin) = plugin.as_mut() else {
        return;
    };
    // SAFETY: This is what the callback was registered with.
    let block: &'static Block = unsafe { &*data.cast() };
    if let Some(pointer) = plugin.register(|registers| registers.rsp) {
        plugin.counter.execute(&plugin.map, block, pointer);
    }
}

/// The guest has something to say.
extern "C" fn marked(cpu: c_uint, _: *mut c_void) {
    let mut plugin = plugin();
    let Some(plugin) = plugin.as_mut() else {
        return;
    };
    let obeyed = plugin.line().and_then(|line| {
        let order = Order::parse(&line).ok_or_else(|| format!("does not understand `{line}`"))?;
        plugin.obey(order, cpu)
    });
    if let Err(error) = obeyed {
        eprintln!("counter: {error}");
    }
}

impl Plugin {
    fn register(&self, which: impl Fn(&Registers) -> *mut Register) -> Option<u64> {
        let register = which(self.registers.as_ref()?);
        // SAFETY: The register was found by QEMU's own list, and `scratch` is ours.
        unsafe {
            g_byte_array_set_size(self.scratch, 0);
            qemu_plugin_read_register(register, self.scratch);
        }
        Some(u64::from_le_bytes(self.scratch().try_into().ok()?))
    }

    fn scratch(&self) -> &[u8] {
        // SAFETY: That is what the array consists of.
        unsafe {
            let array = &*self.scratch;
            std::slice::from_raw_parts(array.data, array.len as usize)
        }
    }

    /// The line that the guest's registers name.
    fn line(&self) -> Result<String, String> {
        let address = self.register(|registers| registers.rdi);
        let len = self.register(|registers| registers.rsi);
        let (Some(address), Some(len)) = (address, len) else {
            return Err("cannot read registers".to_owned());
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 || len > LINE_LIMIT {
            return Err(format!("a line of {len} bytes"));
        }
        // SAFETY: `scratch` is ours, and QEMU makes it long enough.
        unsafe { g_byte_array_set_size(self.scratch, 0) };
        // SAFETY: As above.
        if !unsafe { qemu_plugin_read_memory_vaddr(address, self.scratch, len) } {
            return Err(format!("cannot read the guest's memory at {address:#x}"));
        }
        Ok(String::from_utf8_lossy(self.scratch()).into_owned())
    }

    fn obey(&mut self, order: Order, cpu: c_uint) -> Result<(), String> {
        // SAFETY: The number was made for this.
        let set = |value| unsafe { qemu_plugin_u64_set(self.counting, cpu, value) };
        match order {
            Order::Forget => self.map = Map::default(),
            Order::Range(kind, range) => self.map.add(kind, range),
            Order::Start => {
                self.counter = Counter::default();
                set(1);
            }
            Order::Stop(label) => {
                set(0);
                let counts = self.counter.counts();
                // In one piece, for who reads it while it grows.
                let line = format!(
                    "{}\t{}\t{}\t{}\t{label}\n",
                    counts.calls, counts.driver, counts.callees, counts.copies
                );
                self.out
                    .write_all(line.as_bytes())
                    .map_err(|error| format!("cannot write counts: {error}"))?;
            }
        }
        Ok(())
    }
}
