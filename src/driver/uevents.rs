// SPDX-License-Identifier: GPL-2.0

//! The uevents of a teardown.

use super::{
    device_state::DeviceState,
    plain::teardown::Outcome,
    registry::RegisteredDevice, //
};
use crate::abstractions::kernel::fs::dax::Walked;
use crate::abstractions::kernel_ext::{
    module::ModuleRef,
    module_param::{
        REVOKE_NOTICE_MS,
        REVOKE_TIMEOUT_MS, //
    },
    time::now_ms,
    tracepoint, //
};
use core::ops::Range;
use kernel::{
    prelude::*,
    str::CString, //
};

impl DeviceState {
    /// Sends a uevent with the numbers of pages and inodes that were revoked, and whether the range
    /// was retired. Sends none if nothing was revoked and the range is free.
    pub(super) fn send_outcome_uevent(&self, outcome: Outcome) {
        let Walked {
            nr_inodes: inodes,
            nr_pages: pages,
            ..
        } = self.progress.lock().walked;
        let retired = outcome == Outcome::Retired;
        if inodes == 0 && !retired {
            return;
        }

        let variables = || -> Result<_> {
            Ok([
                CString::try_from_fmt(fmt!("PMEM_RS_REVOKED={pages}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_INODES={inodes}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_RETIRED={}", u32::from(retired)))?,
            ])
        };
        let sent = variables().and_then(|[pages, inodes, retired]| {
            self.flusher
                .region()
                .notify_change([&*pages, &*inodes, &*retired])
        });
        self.report_unsent(sent);
    }

    /// Sends a uevent of the device, and one of its disk, with all that a program needs to act: the
    /// unbinding thread holds the device lock, which some attributes need.
    pub(super) fn send_leaving_uevent(&self, is_waited_for: bool) {
        let notice = if is_waited_for {
            REVOKE_NOTICE_MS.get()
        } else {
            0
        };
        let timeout = REVOKE_TIMEOUT_MS.get();
        let deadline = now_ms().saturating_add(u64::from(notice));

        tracepoint::leaving(&self.name, u64::from(notice), u64::from(timeout));
        let variables = || -> Result<_> {
            Ok([
                CString::try_from_fmt(fmt!("PMEM_RS_STATE=leaving"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_DEVICE={}", *self.name))?,
                CString::try_from_fmt(fmt!("PMEM_RS_NOTICE_MS={notice}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_DEADLINE_MS={deadline}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_REVOKE_TIMEOUT_MS={timeout}"))?,
            ])
        };
        let sent = variables().and_then(|texts| {
            let texts = texts.each_ref().map(|text| &**text);
            let of_device = self.flusher.region().notify_change(texts);
            let of_disk = self.with_parts(|parts| parts.disk.notify_change(texts));
            of_device.and(of_disk.unwrap_or(Err(ENXIO)))
        });
        self.report_unsent(sent);
    }

    /// Sends a uevent of the module: a retired range is free. The device may not exist any more.
    pub(super) fn send_free_uevent(&self, module: &ModuleRef) {
        let Range { start, end } = self.namespace_range();
        let last = end.saturating_sub(1);
        let variables = || -> Result<_> {
            Ok([
                CString::try_from_fmt(fmt!("PMEM_RS_FREE={}", *self.name))?,
                CString::try_from_fmt(fmt!("PMEM_RS_RANGE={start:#x}-{last:#x}"))?,
            ])
        };

        let sent = variables().and_then(|texts| {
            let texts = texts.each_ref().map(|text| &**text);
            module.notify_change(texts)
        });
        self.report_unsent(sent);
    }

    fn report_unsent(&self, sent: Result) {
        if let Err(err) = sent {
            pr_warn!(
                "{}: could not send a uevent: error {}\n",
                *self.name,
                err.to_errno()
            );
        }
    }
}
