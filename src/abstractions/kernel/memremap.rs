// SPDX-License-Identifier: GPL-2.0

//! Mappings of physical memory that is not System RAM, with and without `struct page`s.
//!
//! No device manages these mappings. The value owns the mapping, and may outlive the binding of a
//! driver. The mapping owns the reservation of its range, so the range cannot be mapped or used a
//! second time meanwhile.
//!
//! Memory may fail while it is mapped. x86 then takes the page out of the linear mapping, so that
//! it is not read by speculation. An ordinary access to such a page is an oops.
//! [`PagemapInner`] lists these pages ([`PagemapInner::first_failed`]) until they are
//! [repaired](PagemapInner::unpoison). All of them are put back before the range is freed: a
//! page that is missing then would still be missing when the range is mapped again.
//!
//! A reference to a page does not keep the pgmap. [`PagemapInner`] therefore records which of its
//! pages were ever exposed, that is, whose page frame numbers a translation has returned. The range
//! is freed by [`fs::dax`](crate::abstractions::kernel::fs::dax) once all exposed pages are idle.
//!
//! C headers: [`include/linux/memremap.h`](srctree/include/linux/memremap.h),
//! [`include/linux/io.h`](srctree/include/linux/io.h)

mod access_state;
mod config;
mod data;
mod data_range;
mod exposure;
mod failed_pages;
mod failure;
mod leased;
mod mapping;
mod pagemap;
mod pages;
mod usage;

pub use crate::abstractions::kernel::memremap::{
    config::{
        compat_align,
        memmap_section,
        start_align,
        PagemapConfig,
        PAGE_STRUCT_SIZE, //
    },
    data_range::DataRange,
    failed_pages::PagemapOperations,
    failure::Failure,
    mapping::{
        read_resource,
        Memremap, //
    },
    pagemap::{
        PagemapInner,
        PagemapRef, //
    },
    usage::PagesInUse, //
};
pub(in crate::abstractions) use crate::abstractions::kernel::memremap::{
    pages::Pages,
    usage::{
        FolioUse,
        UsedPage, //
    }, //
};
