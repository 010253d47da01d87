//! The scrub: every page is read and checked within a set time, and files that belong to no extent are removed.

use std::sync::Arc;
use std::time::Duration;

use penstock_types::PAGE_SIZE;

use crate::cache::Cache;
use crate::index::ScrubRow;
use crate::tier::{DIRECTORIES, Tier, number_of};
use crate::usage::ScrubReport;

const DAY: f64 = 24.0 * 60.0 * 60.0;
/// A pass takes half of the interval: then a page that was written just behind the cursor is reached in time too.
const PASSES_PER_INTERVAL: f64 = 2.0;
/// Cursor of a pass that is through.
const THROUGH: u64 = u64::MAX;
/// Directories of extents that one step looks into at most, so that a late pass ends within seconds.
const DIRECTORIES_PER_STEP: usize = 16;

impl Cache {
    /// Checks pages that are due by `scrub_interval_days`, at most `max_pages` of them, and looks for orphans in the
    /// directories that are due, a few at most. Bad pages are dropped and counted. Call it about once a second. Does
    /// nothing while another thread does it or keeps house.
    pub fn scrub_step(&self, max_pages: u64) -> ScrubReport {
        let mut report = ScrubReport::default();
        let interval = self.parts.config.scrub_interval_days * DAY / PASSES_PER_INTERVAL;
        let (Ok(_care), Ok(period)) = (self.care.try_lock(), Duration::try_from_secs_f64(interval)) else {
            return report;
        };
        if period.is_zero() || self.check_open().is_err() {
            return report;
        }
        let mut row = self.pending().scrub;
        let share = self.share_of_pass(&mut row, period);
        self.scrub_directories(&mut row, share, &mut report);
        self.scrub_pages(&mut row, share, max_pages, &mut report);
        self.pending().scrub = row;
        self.parts.metrics.scrub_pages.inc_by(report.pages);
        report
    }

    /// How much of the pass should be done by now; begins a new pass when the time of the last is over.
    fn share_of_pass(&self, row: &mut ScrubRow, period: Duration) -> f64 {
        let now = self.parts.clock.wall_ms();
        let through = row.extent == THROUGH && row.directory >= DIRECTORIES;
        let elapsed = Duration::from_millis(u64::try_from(now - row.started_ms).unwrap_or(0));
        let ahead = row.started_ms > now;
        if row.started_ms == 0 || ahead || (through && elapsed >= period) {
            // After the wall clock jumped back the pass goes on where it was.
            let place = if through || row.started_ms == 0 { ScrubRow::default() } else { *row };
            *row = ScrubRow { started_ms: now, ..place };
            return 0.0;
        }
        (elapsed.as_secs_f64() / period.as_secs_f64()).min(1.0)
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    fn scrub_pages(&self, row: &mut ScrubRow, share: f64, max_pages: u64, report: &mut ScrubReport) {
        let total = self.tiers.iter().map(|tier| tier.used()).sum::<u64>() / PAGE_SIZE;
        let due = (total as f64 * share) as u64;
        // Once the time is over the rest is due, however many pages were counted.
        let mut budget = if share >= 1.0 { max_pages } else { due.saturating_sub(row.done).min(max_pages) };
        while budget > 0 && row.extent != THROUGH {
            let Some(rows) = self.index.rows(row.extent, 1) else { return };
            let Some(next) = rows.first() else {
                row.extent = THROUGH;
                report.pass_finished = true;
                return;
            };
            if next.number != row.extent {
                (row.extent, row.page) = (next.number, 0);
            }
            let Some(extent) = self.extent(next.number) else {
                (row.extent, row.page) = (next.number + 1, 0);
                continue;
            };
            let end = (row.page + budget).min(extent.map.pages());
            match extent.check(row.page..end) {
                Ok((checked, bad)) => {
                    report.pages += checked;
                    report.bad_pages += bad;
                    row.done += checked;
                    // An absent page costs a little too; so a step ends also in a sparse extent.
                    budget -= end - row.page;
                    row.page = end;
                }
                // Gone, or not readable now: the next pass comes by again.
                Err(_) => row.page = extent.map.pages(),
            }
            if row.page >= extent.map.pages() {
                (row.extent, row.page) = (next.number + 1, 0);
                budget = budget.saturating_sub(1);
            }
        }
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    fn scrub_directories(&self, row: &mut ScrubRow, share: f64, report: &mut ScrubReport) {
        let due = ((share * DIRECTORIES as f64) as u64 + 1).min(DIRECTORIES);
        for _ in (row.directory..due).take(DIRECTORIES_PER_STEP) {
            for tier in self.tiers.iter().filter(|tier| tier.offline.is_none()) {
                report.orphans_removed += self.remove_orphans(tier, row.directory).unwrap_or(0);
            }
            row.directory += 1;
        }
    }

    /// Removes extent files of one directory that neither memory nor the index knows. A file that is made meanwhile
    /// belongs to an extent that is in memory before its file is made. How many; `None` when the index cannot say.
    pub(crate) fn remove_orphans(&self, tier: &Arc<Tier>, directory: u64) -> Option<u64> {
        let path = tier.extent_directory(directory);
        let Ok(names) = self.parts.disk.list(&path) else { return Some(0) };
        let mut removed = 0;
        for name in names {
            let Some(number) = number_of(&name) else { continue };
            let in_memory = self.live().number(number).is_some() || self.pending().removed.contains_key(&number);
            if in_memory || self.index.record(number).is_some_and(|record| record.tier == tier.slot) {
                continue;
            }
            if self.index.failure().is_some() {
                return None;
            }
            let file = path.join(&name);
            tracing::info!(code = "cache-orphan-removed", file = %file.display());
            removed += u64::from(self.parts.disk.remove(&file).is_ok());
        }
        Some(removed)
    }
}
