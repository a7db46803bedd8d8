//! Time and chance of one thread out of a seed, so that what runs on it runs the same every
//! time: the system's random bytes, from which names, identities and the order of hash maps
//! are drawn, and its clocks, which follow the paused clock of the runtime.
//!
//! The C library's functions are defined here and stand before those of the library, in the
//! thread that asked for it and nowhere else.

#![allow(unsafe_code, reason = "there is no other way to what libraries ask the system for")]

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::{CStr, c_int, c_long, c_uint, c_void};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// 2030-01-01, in seconds since 1970.
const EPOCH: u64 = 1_893_456_000;

thread_local! {
    /// What the next bytes are drawn from; None where the system is asked.
    static DRAWN: Cell<Option<u64>> = const { Cell::new(None) };
    static BEGUN: OnceCell<tokio::time::Instant> = const { OnceCell::new() };
    /// What happened, in this order.
    static TALE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// How far the wall clock has been set forward, in seconds.
    static JUMPED: Cell<i64> = const { Cell::new(0) };
}

/// Runs a future on a thread of its own, to its end, without waiting for any time to pass.
pub fn run<T: Send, F: Future<Output = T>>(seed: u64, future: impl FnOnce() -> F + Send) -> T {
    let run = || {
        DRAWN.set(Some(seed));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let out = runtime.block_on(async {
            BEGUN.with(|begun| begun.set(tokio::time::Instant::now()).unwrap());
            future().await
        });
        DRAWN.set(None);
        out
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(out) => out,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Adds to the tale of this thread.
pub fn tell(what: String) {
    let at = base::time::rfc3339_micro(base::time::now());
    TALE.with_borrow_mut(|tale| tale.push(format!("{at} {what}")));
}

/// What was told on this thread.
pub fn tale() -> Vec<String> {
    TALE.take()
}

/// Sets the wall clock.
pub fn jump(seconds: i64) {
    JUMPED.set(JUMPED.get() + seconds);
}

/// A step of a Weyl sequence, mixed (splitmix64).
pub fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// None where the thread has no seed.
fn draw(out: &mut [u8]) -> Option<()> {
    let mut state = DRAWN.get()?;
    for chunk in out.chunks_mut(8) {
        chunk.copy_from_slice(&mix(&mut state).to_le_bytes()[..chunk.len()]);
    }
    DRAWN.set(Some(state));
    Some(())
}

/// How long the future runs by the runtime's clock.
fn passed() -> Option<Duration> {
    DRAWN.get()?;
    // Before the clock is paused, and after all is over, it asks for the system's.
    let begun = BEGUN.try_with(|begun| begun.get().copied()).ok()??;
    tokio::runtime::Handle::try_current().ok()?;
    Some(begun.elapsed())
}

type Syscall =
    unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;
type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;

/// The library's own function, which is looked for once.
fn own(name: &'static CStr, found: &AtomicUsize) -> usize {
    match found.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: the name ends with a zero.
            let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
            assert!(address != 0, "the C library has {name:?}");
            found.store(address, Ordering::Relaxed);
            address
        }
        address => address,
    }
}

/// getrandom(2).
///
/// # Safety
/// `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(out: *mut c_void, length: usize, flags: c_uint) -> isize {
    // SAFETY: the caller's promise.
    let bytes = || unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), length) };
    if length > 0 && DRAWN.get().is_some() {
        draw(bytes());
        return length as isize;
    }
    // SAFETY: as the caller asked.
    unsafe { libc::syscall(libc::SYS_getrandom, out, length, flags) as isize }
}

/// syscall(2), which libraries go by to getrandom as well.
///
/// # Safety
/// As that call has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_getrandom && b > 0 && DRAWN.get().is_some() {
        // SAFETY: a and b are the place and the length of what is to be filled.
        draw(unsafe { std::slice::from_raw_parts_mut(a as *mut u8, b as usize) });
        return b;
    }
    static OWN: AtomicUsize = AtomicUsize::new(0);
    let own = own(c"syscall", &OWN);
    // SAFETY: the library's function has this form, and takes what the caller gave.
    unsafe { std::mem::transmute::<usize, Syscall>(own)(number, a, b, c, d, e, f) }
}

/// clock_gettime(2).
///
/// # Safety
/// `out` is a timespec.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> c_int {
    let Some(passed) = passed() else {
        static OWN: AtomicUsize = AtomicUsize::new(0);
        let own = own(c"clock_gettime", &OWN);
        // SAFETY: the library's function has this form.
        return unsafe { std::mem::transmute::<usize, ClockGettime>(own)(clock, out) };
    };
    let wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    let seconds = (EPOCH + passed.as_secs()) as i64 + if wall { JUMPED.get() } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        (*out).tv_sec = seconds;
        (*out).tv_nsec = passed.subsec_nanos().into();
    }
    0
}
