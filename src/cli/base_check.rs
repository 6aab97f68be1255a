//! Whether the base is the one that the adapter was made for: the flag, and what is said about it.

use std::path::Path;

use super::command::Recorded;
use super::ui::Ui;
use crate::base::BaseModel;
use crate::base::fingerprint::Identity;
use crate::error::Result;
use crate::inspect;
use crate::validate::BaseMismatch;
use crate::verify;

#[derive(clap::Args)]
pub struct BaseCheck {
    /// Go on though the base is not the one that the adapter was made for; outputs record it
    #[arg(long)]
    ignore_base_mismatch: bool,
}

impl BaseCheck {
    pub fn record(&self, command: &mut Recorded) {
        let BaseCheck { ignore_base_mismatch } = self;
        command.flag("--ignore-base-mismatch", *ignore_base_mismatch);
    }

    pub fn mismatch(&self) -> BaseMismatch {
        if self.ignore_base_mismatch { BaseMismatch::Ignore } else { BaseMismatch::Refuse }
    }
}

/// Sizes fit many bases: that the numbers are right, only PyTorch's answer shows.
pub const NOT_PROVED: &str =
    "no --probe: that this base and this adapter compute what PyTorch did was not checked (docs/VERIFY.md)";

/// How far a proof's numbers are from what they were held against.
pub fn proof_text(report: &verify::Report) -> String {
    let m = &report.metrics;
    format!(
        "max |dlogit| {:.2e} (limit {:.2e}), mean KL {:.1e}, top-1 {:.1} % of {} positions",
        m.max_abs,
        report.limits.max_abs.unwrap_or(f64::NAN),
        m.mean_kl,
        m.top1_agreement * 100.0,
        m.n_positions
    )
}

/// Opens a base, and says so where it is more than one.
///
/// # Errors
///
/// Those of [`inspect::open_base`].
pub fn open(path: &Path, ui: &Ui) -> Result<BaseModel> {
    let (base, note) = inspect::open_base(path)?;
    note.iter().for_each(|n| ui.note(n));
    Ok(base)
}

/// Says what is not plainly fine.
pub fn note(ui: &Ui, identity: Option<&Identity>) {
    match identity {
        None | Some(Identity::Same) => {}
        Some(Identity::CannotTell(reason)) => {
            ui.note(&format!("whether this is the base that the adapter was made for cannot be told: {reason}"));
        }
        Some(Identity::Different(reason)) => {
            ui.note(&format!("this is not the base that the adapter was made for: {reason}"));
        }
    }
}
