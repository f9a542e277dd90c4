//! A progress bar with rate and time left.

use fewbits::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

/// The bar of the current piece of work.
#[derive(Debug, Default)]
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, change: impl FnOnce(&mut Option<ProgressBar>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn begin(&self, what: &str, total: usize) {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)");
        let bar = ProgressBar::new(total as u64).with_message(what.to_string());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        self.with(|slot| *slot = Some(bar));
    }

    fn step(&self) {
        self.with(|slot| slot.iter().for_each(|bar| bar.inc(1)));
    }

    fn say(&self, what: &str) {
        self.with(|slot| slot.iter().for_each(|bar| bar.set_message(what.to_string())));
    }

    fn line(&self, what: &str) {
        self.with(|slot| match slot {
            Some(bar) => bar.println(what),
            None => Lines.line(what),
        });
    }

    fn end(&self) {
        self.with(|slot| slot.take().iter().for_each(ProgressBar::finish_and_clear));
    }
}

/// Prints the lines that stay, where there is no terminal.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl Progress for Lines {
    fn begin(&self, _what: &str, _total: usize) {}
    fn step(&self) {}
    fn line(&self, what: &str) {
        // A closed stream is no reason to stop.
        let _ = writeln!(io::stderr().lock(), "{what}");
    }
    fn end(&self) {}
}
