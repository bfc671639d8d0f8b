// SPDX-License-Identifier: GPL-2.0

//! Defects that the models must find.

/// A defect of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    // The notice.
    /// `announce` returns before user space was told.
    AnnouncedLate,
    /// Users are not waited for.
    NoticeIgnored,

    // The walk over the files.
    /// The walk does not wait for entries that are locked.
    LockedEntriesIgnored,
    /// The walk unmaps once, before it waits for locked entries.
    UnmappedOnce,
    /// The invalidate lock is not taken.
    NoInvalidateLock,
    /// Entries are deleted without the inode lock.
    NoInodeLock,
    /// The files are walked only before access is closed.
    WalkBeforeClose,
    /// `revoke` returns before the files were walked, which happens later.
    RevokedUnwalked,
    /// The files are walked only if a page was exposed.
    CopiesIgnored,

    // The access state.
    /// The access state is ignored. The device refuses only when it is not alive.
    AccessStateIgnored,
    /// There is no barrier after access is closed.
    NoBarrier,
    /// There is no barrier before a fault checks the access state.
    NoFaultBarrier,
    /// A page is recorded as exposed only after the access state was checked.
    ExposedLate,
    /// A fault whose page is already recorded as exposed has no barrier before it checks the access
    /// state; reading the record is an acquire.
    ExposureAcquired,

    // The users.
    /// The DAX device puts its reference to the pgmap before it has waited for its readers.
    ReadersIgnored,
    /// References to the pgmap are ignored.
    TranslationsIgnored,
    /// References to pages are ignored.
    PinsIgnored,
    /// Page cache entries of a page are ignored.
    EntriesIgnored,
    /// Keepers are ignored.
    KeepersIgnored,
    /// Removing the disk does not wait for requests.
    RequestsIgnored,
    /// Files are not referenced before the disk is removed.
    FilesNotHeld,
    /// The search for such files does not take the invalidate lock.
    FilesNotLocked,
    /// Only files with pinned pages are referenced.
    LockedNotHeld,
    /// Whether an entry is locked is read without the lock of its array, and without an acquire.
    LockedReadRelaxed,

    // The wait.
    /// The unbinding thread waits for the last user.
    NeverRetired,
    /// The check that waiting is hopeless is missing.
    KeeperWaitedForever,
    /// A fatal signal is ignored.
    SignalIgnored,
    /// That the system goes down is ignored.
    GoingDownIgnored,
    /// Nothing is woken when the system goes down.
    NotWokenToGoDown,
    /// The call of `wake_up` with this number, counted from 0, wakes no thread.
    WakeUpLost(u32),

    // The end.
    /// `free` returns before the memory is free.
    FreedLater,
    /// The reservation is released before the memory is freed.
    UnreservedEarly,
    /// The memory is freed without a grace period after its last use.
    NoGracePeriod,
    /// A reference to the module does not prevent its unloading.
    ModuleNotKept,
    /// The exit of the module does not wait for the work queues.
    QueuesNotDrained,
}
