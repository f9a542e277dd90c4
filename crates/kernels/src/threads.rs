//! The thread pool as an argument.

use std::fmt;

/// A pool of worker threads. Kernels receive it as an argument and split their work into tasks whose boundaries do not
/// depend on the number of threads, so that results do not either.
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// A pool of `count` threads; 0 means one per available core. One thread runs everything on the caller's.
    pub fn new(count: usize) -> Self {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = (count > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(count).build().ok())
            .flatten();
        let count = if pool.is_some() { count } else { 1 };
        Threads { pool, count }
    }

    /// How many threads run tasks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, on any thread and in any order, and returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync + Send) {
        use rayon::prelude::*;
        match &self.pool {
            Some(pool) if tasks > 1 => pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task)),
            _ => (0..tasks).for_each(task),
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({})", self.count)
    }
}
