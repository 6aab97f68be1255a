//! Progress on a terminal: a bar, the mean rate and the time left.

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::units::{bytes, duration};

/// What takes less time than this shows nothing: it would only flicker.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read or written.
    Bytes,
    /// Steps of a computation: a layer, a block of the output matrix, a trial.
    Steps,
    /// Tokens of a prompt.
    #[cfg(feature = "generate")]
    Tokens,
    /// Adapters of a batch.
    Adapters,
}

/// The progress of one command, which may have several phases one after the other.
pub struct Progress {
    /// Never on a pipe, nor where it was asked to be quiet.
    is_shown: bool,
    phase: Mutex<Option<Phase>>,
}

struct Phase {
    unit: Unit,
    total: u64,
    clock: Clock,
    bar: Option<ProgressBar>,
}

/// How far a phase has come, and when it began. The first report comes when a part is done already, and when that part
/// began nobody knows: it counts as progress, not towards the rate.
#[derive(Debug, Clone, Copy)]
struct Clock {
    started: Instant,
    done_at_start: u64,
    done: u64,
}

impl Clock {
    /// Done per second; `None` before there is anything to tell it from.
    fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.started).as_secs_f64();
        let n = self.done.saturating_sub(self.done_at_start);
        (n > 0 && seconds > 0.0).then(|| n as f64 / seconds)
    }
}

impl Progress {
    pub fn new(is_wanted: bool) -> Progress {
        Progress { is_shown: is_wanted && std::io::stderr().is_terminal(), phase: Mutex::new(None) }
    }

    /// Shows how far the work is. Called from any thread; another unit or total begins a new phase.
    pub fn report(&self, done: u64, total: u64, unit: Unit) {
        if !self.is_shown {
            return;
        }
        let now = Instant::now();
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|p| (p.unit, p.total) != (unit, total) || done < p.clock.done_at_start) {
            clear(&mut slot);
        }
        let clock = Clock { started: now, done_at_start: done, done };
        let phase = slot.get_or_insert_with(|| Phase { unit, total, clock, bar: None });
        // Threads finish in any order.
        phase.clock.done = phase.clock.done.max(done);
        if phase.bar.is_none() && now.duration_since(phase.clock.started) < SHOW_AFTER {
            return;
        }
        let (clock, text) = (phase.clock, message(&phase.clock, total, unit, now));
        let bar = phase.bar.get_or_insert_with(|| {
            // The bar takes what the words leave.
            let style =
                ProgressStyle::with_template("{wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
        });
        bar.set_message(text);
        bar.set_position(clock.done);
    }

    /// Takes the bar away: the work is done, or something else is printed.
    pub fn clear(&self) {
        clear(&mut self.slot());
    }

    /// Prints something without the bar in between.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match self.slot().as_ref().and_then(|p| p.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Phase>> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clear(slot: &mut Option<Phase>) {
    if let Some(bar) = slot.take().and_then(|p| p.bar) {
        bar.finish_and_clear();
    }
}

/// `37 %  1.2 GB of 3.3 GB  410.0 MB/s  6 s left`
fn message(clock: &Clock, total: u64, unit: Unit, now: Instant) -> String {
    let done = clock.done.min(total);
    let percent = (done * 100).checked_div(total).unwrap_or(100);
    let mut out = match unit {
        Unit::Bytes => format!("{percent} %  {} of {}", bytes(done), bytes(total)),
        Unit::Steps => format!("{percent} %  step {done} of {total}"),
        #[cfg(feature = "generate")]
        Unit::Tokens => format!("{percent} %  {done} of {total} tokens"),
        Unit::Adapters => format!("{percent} %  {done} of {total} adapters"),
    };
    if let Some(rate) = clock.rate(now) {
        let left = duration((total - done) as f64 / rate);
        out += &match unit {
            Unit::Bytes => format!("  {}/s  {left} left", bytes(rate as u64)),
            // Two significant digits are all that a rate is worth.
            _ if rate >= 10.0 => format!("  {rate:.0}/s  {left} left"),
            _ if rate >= 1.0 => format!("  {rate:.1}/s  {left} left"),
            _ => format!("  {:.1} s each  {left} left", 1.0 / rate),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done_at_start: u64, done: u64, seconds: u64, total: u64, unit: Unit) -> String {
        let started = Instant::now();
        let clock = Clock { started, done_at_start, done };
        message(&clock, total, unit, started + Duration::from_secs(seconds))
    }

    #[test]
    fn the_rate_is_the_mean_since_the_first_report() {
        // Whatever was done before the first report says nothing about speed.
        assert_eq!(at(1000, 1000, 2, 4000, Unit::Steps), "25 %  step 1000 of 4000");
        assert_eq!(at(10, 30, 10, 90, Unit::Steps), "33 %  step 30 of 90  2.0/s  30 s left");
        assert_eq!(at(0, 400, 4, 1000, Unit::Adapters), "40 %  400 of 1000 adapters  100/s  6 s left");
        assert_eq!(at(0, 1_200_000_000, 3, 3_200_000_000, Unit::Bytes), "37 %  1.2 GB of 3.2 GB  400.0 MB/s  5 s left");
        assert_eq!(at(0, 1, 100, 101, Unit::Steps), "0 %  step 1 of 101  100.0 s each  2 h 46 min left");
        assert_eq!(at(0, 100, 100, 100, Unit::Steps), "100 %  step 100 of 100  1.0/s  0 s left");
    }
}
