// SPDX-License-Identifier: GPL-2.0

//! SQLite: a row that `sqlite3` has acknowledged is committed.

use std::path::Path;

use anyhow::Result;

use super::{Program, SOON};
use crate::sqlite::{Inserts, expect_rows};

const DATABASE: &str = "sqlite";

struct Sqlite {
    inserts: Inserts,
    acknowledged: u64,
}

pub fn start(dir: &Path) -> Result<Box<dyn Program>> {
    Ok(Box::new(Sqlite {
        inserts: Inserts::start(&dir.join(DATABASE))?,
        acknowledged: 0,
    }))
}

impl Program for Sqlite {
    fn expect_ended(&mut self) -> Result<()> {
        let (ended, acknowledged) = self.inserts.expect_ended(SOON)?;
        println!("sqlite3 ended with {ended}, after {acknowledged} rows");
        self.acknowledged = acknowledged;
        Ok(())
    }

    fn expect_committed(&self, dir: &Path) -> Result<()> {
        expect_rows(&dir.join(DATABASE), self.acknowledged).map(drop)
    }
}
