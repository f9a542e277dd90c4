//! The thread pool as an argument.
//!
//! What enters: a number of tasks and a function of the task's index. What leaves: nothing, when all tasks are done.
//! Kernels take microseconds, so workers look for work in a short busy loop before they sleep, and a caller never waits for a
//! worker that did not come.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How often an idle worker looks for work before it sleeps: some tens of microseconds.
const SPINS_BEFORE_SLEEP: usize = 2000;
/// How often a waiting caller looks before it lets other threads of the machine run.
const SPINS_BEFORE_YIELD: usize = 4000;

/// A pool of worker threads. Kernels receive it as an argument and split their work into tasks whose boundaries do not
/// depend on the number of threads, so that results do not either.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Job {
    /// The caller's function with its lifetime erased; valid while the gate is open or somebody is inside.
    task: Task<'static>,
    tasks: usize,
}

struct Shared {
    /// One caller at a time; others run their tasks on their own thread.
    caller: Mutex<()>,
    /// Generation of the job, an "open" bit, and the number of workers inside, from high to low bits.
    gate: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// The next task of each thread's share.
    next: Vec<Next>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
}

/// A counter with a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Next(AtomicUsize);

const OPEN: usize = 1 << 15;
const GENERATION: usize = 1 << 16;

// SAFETY: `job` is the only field that is not `Sync`. It is written only by the holder of `caller` while the gate is closed
// and nobody is inside, and read only by that holder and by workers inside the gate; entering and leaving order these.
unsafe impl Sync for Shared {}
// SAFETY: the job holds a reference to a `Sync` function, and nothing of it belongs to a thread.
unsafe impl Send for Shared {}

impl Threads {
    /// A pool of `count` threads, the caller's included; 0 means one per available core. If the system refuses a thread, the
    /// pool is smaller.
    pub fn new(count: usize) -> Self {
        let count = match count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n.min(OPEN / 2),
        };
        let shared = Arc::new(Shared {
            caller: Mutex::new(()),
            gate: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: (0..count).map(|_| Next::default()).collect(),
            panic: Mutex::new(None),
            asleep: (1..count).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let spawn = |worker| {
            let shared = Arc::clone(&shared);
            let name = format!("fewbits-{worker}");
            thread::Builder::new().name(name).spawn(move || shared.work(worker)).ok()
        };
        let workers = (1..count).map_while(spawn).collect();
        Threads { shared, workers }
    }

    /// How many threads run tasks.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, on any thread and in any order, and returns when all are done.
    /// A panic of a task is passed on. Called from inside a task, it runs on that task's thread alone.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync + Send) {
        self.run_with_worker(tasks, |_, i| task(i));
    }

    /// `task(i)` for every `i` in `0..count`, on any thread; what they return is in order. To fail with the error of the lowest number,
    /// collect into a `Result`.
    pub fn map<T: Send>(&self, count: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        let slots: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
        self.run(count, |i| *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(task(i)));
        slots.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// `task(part)` once for every part, on any thread: for slices of one buffer, each changed by one task.
    pub fn each<T: Send>(&self, parts: impl IntoIterator<Item = T>, task: impl Fn(T) + Sync + Send) {
        let slots: Vec<Mutex<Option<T>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
        self.run(slots.len(), |i| {
            let part = slots[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            part.into_iter().for_each(&task);
        });
    }

    /// Like [`Threads::run`], but calls `task(worker, i)` with the number of the thread, below [`Threads::count`]. No two
    /// tasks of one call run with the same number at the same time, so it can index scratch memory.
    pub fn run_with_worker(&self, tasks: usize, task: impl Fn(usize, usize) + Sync + Send) {
        if tasks > 1
            && !self.workers.is_empty()
            && let Ok(_caller) = self.shared.caller.try_lock()
        {
            self.run_shared(tasks, &task);
        } else {
            (0..tasks).for_each(|i| task(0, i));
        }
    }

    fn run_shared(&self, tasks: usize, task: Task<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The reference is used by this thread here and by workers inside the gate, and
        // this function returns only after the gate is closed and empty, also if a task panics.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the gate is closed and empty, and `caller` is held: nobody else looks at the job.
        unsafe { *shared.job.get() = Some(Job { task, tasks }) };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.share(thread, tasks).start, Ordering::Relaxed);
        }
        let generation = shared.gate.load(Ordering::Relaxed) / GENERATION;
        shared.gate.store(generation.wrapping_add(1).wrapping_mul(GENERATION) | OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers).take(tasks - 1) {
            if asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.take_tasks(0, task, tasks);
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while shared.gate.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            looks += 1;
            if looks < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// The tasks that are a thread's own: neighbours, and the same ones in every job, so that a thread often finds in its cache
    /// what it wrote there in the job before.
    fn share(&self, thread: usize, tasks: usize) -> Range<usize> {
        let count = self.next.len();
        thread * tasks / count..(thread + 1) * tasks / count
    }

    /// Takes tasks until none is left, first its own, then those of others. Panics are kept for the caller.
    fn take_tasks(&self, worker: usize, task: Task<'_>, tasks: usize) {
        let run = || {
            let count = self.next.len();
            for thread in (worker..count).chain(0..worker) {
                let end = self.share(thread, tasks).end;
                loop {
                    let i = self.next[thread].0.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        break;
                    }
                    task(worker, i);
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.next.iter().for_each(|next| next.0.store(tasks, Ordering::Relaxed));
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// The life of a worker.
    fn work(&self, worker: usize) {
        let mut done = 0;
        while let Some(generation) = self.next_job(worker, done) {
            // SAFETY: this worker is inside the gate, so the job stays as it is until it leaves.
            if let Some(job) = unsafe { &*self.job.get() } {
                self.take_tasks(worker, job.task, job.tasks);
            }
            self.gate.fetch_sub(1, Ordering::Release);
            done = generation;
        }
    }

    /// Waits for a job other than `done` and enters the gate; `None` when the pool ends.
    fn next_job(&self, worker: usize, done: usize) -> Option<usize> {
        let asleep = &self.asleep[worker - 1];
        let mut looks = 0;
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & OPEN != 0 && gate / GENERATION != done {
                let entered = self.gate.compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(gate / GENERATION);
                }
                continue;
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if looks < SPINS_BEFORE_SLEEP {
                looks += 1;
                std::hint::spin_loop();
            } else if asleep.load(Ordering::SeqCst) {
                thread::park();
                looks = if asleep.load(Ordering::SeqCst) { SPINS_BEFORE_SLEEP } else { 0 };
            } else {
                // Look once more between saying so and sleeping: a job published before that would not wake this worker.
                asleep.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of tasks and has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({})", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_a_worker_of_its_own() {
        let threads = Threads::new(4);
        for tasks in [0, 1, 2, 3, 7, 100] {
            for _ in 0..200 {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let busy: Vec<AtomicBool> = (0..threads.count()).map(|_| AtomicBool::new(false)).collect();
                threads.run_with_worker(tasks, |worker, i| {
                    assert!(!busy[worker].swap(true, Ordering::SeqCst));
                    runs[i].fetch_add(1, Ordering::SeqCst);
                    busy[worker].store(false, Ordering::SeqCst);
                });
                assert!(runs.iter().all(|n| n.load(Ordering::SeqCst) == 1));
            }
        }
    }

    #[test]
    fn what_is_mapped_comes_back_in_order() {
        let threads = Threads::new(4);
        let odd = |i: usize| if i.is_multiple_of(2) { Ok(i * i) } else { Err(i) };
        for count in [0, 1, 2, 100] {
            assert_eq!(threads.map(count, |i| i * i), (0..count).map(|i| i * i).collect::<Vec<_>>());
            assert_eq!(threads.map(count, odd).into_iter().collect::<Result<Vec<_>, _>>().is_err(), count > 1);
        }
        assert_eq!(threads.map(100, odd).into_iter().collect::<Result<Vec<_>, _>>(), Err(1));
    }

    #[test]
    fn each_part_is_changed_once() {
        let mut values = vec![0u32; 1000];
        let threads = Threads::new(4);
        threads.each(values.chunks_mut(7).zip(1..), |(part, number)| part.iter_mut().for_each(|v| *v += number));
        assert!(values.iter().enumerate().all(|(i, v)| *v as usize == i / 7 + 1));
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let threads = Threads::new(3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            // Each task waits for the others, so this ends only if three threads work.
            let here = AtomicUsize::new(0);
            threads.run(3, |_| {
                here.fetch_add(1, Ordering::SeqCst);
                while here.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn nested_and_concurrent_calls_do_not_wait_for_each_other() {
        let threads = Threads::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    threads.run(8, |_| {
                        threads.run(5, |i| {
                            sum.fetch_add(i, Ordering::SeqCst);
                        })
                    })
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 8 * 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| threads.run(50, |i| assert!(i != 20, "task 20"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        threads.run(10, |i| {
            sum.fetch_add(i, Ordering::SeqCst);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
