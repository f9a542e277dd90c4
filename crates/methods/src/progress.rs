//! Progress as an argument: the library reports, the program draws.

/// Told how far a long piece of work has come.
pub trait Progress: Sync {
    /// A piece of work of `total` steps begins.
    fn begin(&self, what: &str, total: usize);
    /// One step is done.
    fn step(&self);
    /// How the piece of work is going, in place of what was said before.
    fn say(&self, _what: &str) {}
    /// A line that stays.
    fn line(&self, _what: &str) {}
    /// The piece of work is over.
    fn end(&self);
}

/// Draws nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total: usize) {}
    fn step(&self) {}
    fn end(&self) {}
}
