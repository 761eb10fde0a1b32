//! The rate of this machine's time-stamp counter, which is that of the test host's: a frozen host thaws only where it is
//! the same, and one that boots need not measure it on a busy machine.

use std::time::{Duration, Instant};

/// kHz against CLOCK_MONOTONIC, over 20 ms: good to a few parts in 100,000.
#[expect(unsafe_code, reason = "rdtsc is an intrinsic that the compiler counts as unsafe")]
pub(super) fn measure_khz() -> u64 {
    // SAFETY: x86-64 always has the rdtsc instruction, and Linux leaves it enabled (prctl PR_SET_TSC is per process).
    let counter = || unsafe { core::arch::x86_64::_rdtsc() };
    let (begin, begin_counter) = (Instant::now(), counter());
    while begin.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let (elapsed, counted) = (begin.elapsed(), counter().wrapping_sub(begin_counter));
    let khz = u128::from(counted) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(khz).expect("a counter's rate in kHz is far below 2^64")
}

/// Whether two measurements are of the same counter: within a thousandth.
pub(super) fn agree(one: u64, other: u64) -> bool {
    one.abs_diff(other) <= one / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_of_one_machine_agree_and_others_do_not() {
        let here = measure_khz();
        assert!((100_000..10_000_000).contains(&here), "{here} kHz");
        assert!(agree(2_596_120, 2_596_400));
        assert!(!agree(2_596_120, 2_700_000));
    }
}
