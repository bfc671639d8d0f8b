// SPDX-License-Identifier: GPL-2.0

//! The connection to QEMU: the part of its plugin interface that is needed, in version 4 (QEMU 9.2 and later).
//!
//! Header: `include/plugins/qemu-plugin.h` of QEMU.
//!
//! QEMU translates code in blocks when it is to be executed for the first time, and keeps them. A plugin says
//! of each block then what it wants to be told when that is executed.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::instruction::LONGEST;
use crate::{LINE_LIMIT, MARK, Out};

type Id = u64;

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
struct Handle {
    _opaque: [u8; 0],
}
#[repr(C)]
struct HwAddr {
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
    handle: *mut Handle,
    name: *const c_char,
    feature: *const c_char,
}

/// GLib's `GArray` and `GByteArray`, as far as they are public.
#[repr(C)]
struct Array<T> {
    data: *mut T,
    len: c_uint,
}

/// What a plugin is told about QEMU when it is loaded; QEMU has more in it.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    min: c_int,
    current: c_int,
    system_emulation: bool,
    cpus: c_int,
}

type CpuCallback = extern "C" fn(Id, c_uint);
type SimpleCallback = extern "C" fn(Id);
type EndCallback = extern "C" fn(Id, *mut c_void);
type TranslateCallback = extern "C" fn(Id, *mut Tb);
type ExecuteCallback = extern "C" fn(c_uint, *mut c_void);
type MemoryCallback = extern "C" fn(c_uint, c_uint, u64, *mut c_void);

/// The callback needs no registers (`QEMU_PLUGIN_CB_NO_REGS`).
const NO_REGISTERS: c_int = 0;
/// The callback reads registers (`QEMU_PLUGIN_CB_R_REGS`).
const READS_REGISTERS: c_int = 1;
/// The callback runs unless the number is the one given (`QEMU_PLUGIN_COND_NE`).
const UNLESS_EQUAL: c_int = 3;
/// The callback is for stores (`QEMU_PLUGIN_MEM_W`).
const STORES: c_int = 2;

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
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut Insn,
        callback: MemoryCallback,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_atexit_cb(id: Id, callback: EndCallback, data: *mut c_void);
    fn qemu_plugin_reset(id: Id, callback: SimpleCallback);
    fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_mem_size_shift(info: c_uint) -> c_uint;
    fn qemu_plugin_get_hwaddr(info: c_uint, address: u64) -> *mut HwAddr;
    fn qemu_plugin_hwaddr_is_io(address: *const HwAddr) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: *const HwAddr) -> u64;
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut Score;
    fn qemu_plugin_u64_set(entry: PerCpu, cpu: c_uint, value: u64);
    fn qemu_plugin_get_registers() -> *mut Array<RegisterDescription>;
    fn qemu_plugin_read_register(register: *mut Handle, to: *mut Array<u8>) -> c_int;
    fn qemu_plugin_read_memory_vaddr(address: u64, to: *mut Array<u8>, len: usize) -> bool;

    // GLib, which QEMU is linked with.
    fn g_byte_array_new() -> *mut Array<u8>;
    fn g_byte_array_set_size(array: *mut Array<u8>, len: c_uint) -> *mut Array<u8>;
    fn g_array_unref(array: *mut c_void);
}

/// What a plugin does. It is called by one CPU at a time.
///
/// The `token` in what it is told is the number that it has asked for it with.
pub trait Plugin: Send {
    /// A block is translated: now is the time to ask to be told of it.
    fn translated(&mut self, block: &Block<'_>);

    /// A block or an instruction is about to be executed.
    fn executed(&mut self, _cpu: &Cpu<'_>, _token: usize) {}

    /// An instruction has stored something.
    fn stored(&mut self, _piece: &Piece, _token: usize) {}

    /// The guest has said a line to this plugin. An error is printed.
    fn told(&mut self, cpu: &Cpu<'_>, line: &str) -> Result<(), String>;

    /// The machine is off. An error is printed. It does not come if QEMU is killed.
    fn ending(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A register of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A general one, by the number that instructions have for it.
    General(u8),
    /// Where the page tables are.
    Cr3,
}

impl Register {
    pub const RSP: Register = Register::General(4);
    pub const RSI: Register = Register::General(6);
    pub const RDI: Register = Register::General(7);
}

/// Their names, by number.
const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

struct Registers {
    general: [*mut Handle; GENERAL.len()],
    cr3: *mut Handle,
}

/// What it takes to ask QEMU something.
struct Connection {
    id: Id,
    name: &'static str,
    registers: Option<Registers>,
    /// For what QEMU has to say; emptied before each use.
    scratch: *mut Array<u8>,
}

// SAFETY: The pointers are to objects of QEMU that live as long as it does; what is behind `scratch` is used by
// nobody else, and only by who holds the lock of `LOADED`.
unsafe impl Send for Connection {}

struct Loaded {
    connection: Connection,
    plugin: Box<dyn Plugin>,
}

/// Everything that callbacks share.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

fn loaded() -> MutexGuard<'static, Option<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that the plugin sets, which decides whether callbacks are called.
pub struct Switch(PerCpu);

// SAFETY: The pointer is to an object of QEMU that lives as long as it does, and which QEMU lets all threads use.
unsafe impl Send for Switch {}

impl Switch {
    /// Makes one, which is off. To be called while plugins are made.
    #[expect(
        clippy::new_without_default,
        reason = "it is not a value, but is made in QEMU"
    )]
    pub fn new() -> Switch {
        // SAFETY: The function may be called at any time.
        let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
        Switch(PerCpu { score, offset: 0 })
    }

    /// Sets it for a CPU.
    pub fn set(&self, cpu: &Cpu<'_>, on: bool) {
        // SAFETY: The number was made for this, and for all CPUs.
        unsafe { qemu_plugin_u64_set(self.0, cpu.index, u64::from(on)) }
    }
}

/// A block that is being translated: instructions that are executed one after the other.
pub struct Block<'a> {
    tb: *mut Tb,
    _translation: PhantomData<&'a ()>,
}

impl Block<'_> {
    /// The address of the first instruction.
    pub fn start(&self) -> u64 {
        // SAFETY: The block is QEMU's, and there during the callback.
        unsafe { qemu_plugin_tb_vaddr(self.tb) }
    }

    /// The instructions, at least one.
    pub fn instructions(&self) -> impl ExactSizeIterator<Item = Instruction<'_>> {
        // SAFETY: As above.
        let len = unsafe { qemu_plugin_tb_n_insns(self.tb) };
        (0..len).map(|index| Instruction {
            // SAFETY: The block has so many.
            insn: unsafe { qemu_plugin_tb_get_insn(self.tb, index) },
            _block: PhantomData,
        })
    }

    /// Asks to be told when it is executed and the switch is on.
    pub fn tell_if(&self, switch: &Switch, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_tb_exec_cond_cb(
                self.tb,
                executed,
                READS_REGISTERS,
                UNLESS_EQUAL,
                switch.0,
                0,
                token as *mut c_void,
            );
        }
    }
}

/// An instruction of such a block.
pub struct Instruction<'a> {
    insn: *mut Insn,
    _block: PhantomData<&'a ()>,
}

impl Instruction<'_> {
    /// Where it is.
    pub fn address(&self) -> u64 {
        // SAFETY: The instruction is QEMU's, and there during the callback.
        unsafe { qemu_plugin_insn_vaddr(self.insn) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; LONGEST];
        // SAFETY: As above, and there is room for so many bytes.
        let len = unsafe {
            let len = qemu_plugin_insn_size(self.insn).min(bytes.len());
            qemu_plugin_insn_data(self.insn, bytes.as_mut_ptr().cast(), len)
        };
        bytes.truncate(len);
        bytes
    }

    /// Asks to be told when it is executed.
    pub fn tell(&self, token: usize) {
        self.call(executed, token);
    }

    fn call(&self, callback: ExecuteCallback, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cb(
                self.insn,
                callback,
                READS_REGISTERS,
                token as *mut c_void,
            );
        }
    }

    /// Asks to be told when it stores something.
    pub fn tell_stores(&self, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_mem_cb(
                self.insn,
                stored,
                NO_REGISTERS,
                STORES,
                token as *mut c_void,
            );
        }
    }
}

/// What was stored within one page: an address of physical memory, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub physical: u64,
    pub len: u64,
}

/// The CPU that has called the plugin.
pub struct Cpu<'a> {
    index: c_uint,
    connection: &'a Connection,
}

impl Cpu<'_> {
    /// What is in a register. Not for what is called by stores.
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

    /// What the guest has at an address.
    pub fn memory(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.connection.read(|scratch| {
            // SAFETY: QEMU makes the array long enough, and says if there is no such memory.
            unsafe { qemu_plugin_read_memory_vaddr(address, scratch, len) }
        })
    }

    /// Has all code translated again, so that the plugin may ask for something else.
    pub fn translate_anew(&self) {
        // SAFETY: The number is that of this plugin.
        unsafe { qemu_plugin_reset(self.connection.id, register) }
    }

    /// The line that the guest's registers name.
    fn line(&self) -> Result<String, String> {
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
    /// Lets QEMU say something into the scratch, unless it cannot.
    fn read(&self, ask: impl FnOnce(*mut Array<u8>) -> bool) -> Option<&[u8]> {
        // SAFETY: `scratch` is ours.
        unsafe { g_byte_array_set_size(self.scratch, 0) };
        if !ask(self.scratch) {
            return None;
        }
        // SAFETY: That is what the array consists of.
        Some(unsafe {
            let array = &*self.scratch;
            std::slice::from_raw_parts(array.data, array.len as usize)
        })
    }
}

/// Loads a plugin: what `export!` has QEMU call.
///
/// # Safety
///
/// The first four arguments must be as QEMU's header has it for `qemu_plugin_install`.
pub unsafe fn install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
    name: &'static str,
    cpus: c_int,
    make: impl FnOnce(Out) -> Box<dyn Plugin>,
) -> c_int {
    // SAFETY: QEMU says so.
    let info = unsafe { &*info };
    // SAFETY: QEMU passes a string.
    let target = unsafe { CStr::from_ptr(info.target) };
    if target != c"x86_64" || !info.system_emulation || info.cpus > cpus {
        eprintln!("{name}: this is for an x86-64 machine with {cpus} CPUs at most (-smp {cpus})");
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
            eprintln!("{name}: cannot write the file that out= names: {error}");
            return 1;
        }
        None => {
            eprintln!("{name}: out=FILE says where results are written to, and is missing");
            return 1;
        }
    };
    *loaded() = Some(Loaded {
        connection: Connection {
            id,
            name,
            registers: None,
            // SAFETY: The function may be called at any time.
            scratch: unsafe { g_byte_array_new() },
        },
        plugin: make(Out(out)),
    });
    // SAFETY: The function takes a function of the right type.
    unsafe { qemu_plugin_register_vcpu_init_cb(id, started) };
    register(id);
    0
}

/// Asks QEMU to say what it translates, and when it ends.
extern "C" fn register(id: Id) {
    // SAFETY: The functions take functions of the right types, and the latter a pointer that it does not need.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
}

/// QEMU is about to end.
extern "C" fn ended(_: Id, _: *mut c_void) {
    if let Some(Loaded { connection, plugin }) = loaded().as_mut() {
        if let Err(error) = plugin.ending() {
            eprintln!("{}: {error}", connection.name);
        }
    }
}

/// A CPU exists: looks for its registers, which all CPUs have in common.
extern "C" fn started(_: Id, _: c_uint) {
    // SAFETY: This is the callback where QEMU allows that. The array is of descriptions, with names that stay.
    let registers = unsafe {
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
    };
    if let Some(Loaded { connection, .. }) = loaded().as_mut() {
        if registers.is_none() {
            eprintln!("{}: QEMU does not show the registers", connection.name);
        }
        connection.registers = registers;
    }
}

/// A block was translated.
extern "C" fn translated(_: Id, tb: *mut Tb) {
    let mut loaded = loaded();
    let Some(loaded) = loaded.as_mut() else {
        return;
    };
    let block = Block {
        tb,
        _translation: PhantomData,
    };
    for instruction in block.instructions() {
        if instruction.bytes() == MARK {
            instruction.call(marked, 0);
        }
    }
    loaded.plugin.translated(&block);
}

/// A block or an instruction is about to be executed.
extern "C" fn executed(index: c_uint, token: *mut c_void) {
    if let Some(Loaded { connection, plugin }) = loaded().as_mut() {
        plugin.executed(&Cpu { index, connection }, token as usize);
    }
}

/// An instruction has stored something.
extern "C" fn stored(_: c_uint, info: c_uint, address: u64, token: *mut c_void) {
    let mut loaded = loaded();
    let Some(loaded) = loaded.as_mut() else {
        return;
    };
    // SAFETY: This is the callback in which QEMU knows that.
    let len = 1 << unsafe { qemu_plugin_mem_size_shift(info) };
    for part in parts(address..address.saturating_add(len)) {
        // SAFETY: As above. What it returns is good until the next call.
        let physical = unsafe {
            let found = qemu_plugin_get_hwaddr(info, part.start);
            if found.is_null() || qemu_plugin_hwaddr_is_io(found) {
                continue;
            }
            qemu_plugin_hwaddr_phys_addr(found)
        };
        let len = part.end - part.start;
        loaded
            .plugin
            .stored(&Piece { physical, len }, token as usize);
    }
}

/// Cuts a range at the border between pages, if there is one in it.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    const PAGE: u64 = 4096;
    let border = (range.end - 1) / PAGE * PAGE;
    let (first, second) = if border > range.start {
        (range.start..border, Some(border..range.end))
    } else {
        (range, None)
    };
    std::iter::once(first).chain(second)
}

/// The guest has something to say.
extern "C" fn marked(index: c_uint, _: *mut c_void) {
    let mut loaded = loaded();
    let Some(Loaded { connection, plugin }) = loaded.as_mut() else {
        return;
    };
    let cpu = Cpu { index, connection };
    let told = cpu.line().and_then(|line| match line.split_once(' ') {
        Some((name, line)) if name == connection.name => plugin.told(&cpu, line),
        // It is for another one.
        _ => Ok(()),
    });
    if let Err(error) = told {
        eprintln!("{}: {error}", connection.name);
    }
}
