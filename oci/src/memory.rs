//! Memory from the kernel, in huge pages where those are at hand.
//!
//! A huge page that is ready costs half of what its small pages cost. One that the kernel must
//! first put together, or a hypervisor must first back, costs several times as much; nothing but a
//! try tells.

use std::{io, time::Duration, time::Instant};

use memmap2::{Advice, MmapMut};

/// Size of a huge page in bytes.
const HUGE: usize = 2 << 20;
/// How many are tried: more than a processor keeps at hand.
const TRIED: usize = 8;
/// What small pages of the same size take, at least.
const SMALL_PAGES: Duration = Duration::from_micros(600);
/// How many times as long something must take to be no mere disturbance.
const DEAR: u32 = 4;

/// Whether huge pages are faster than small ones here and now. Takes some milliseconds, tens
/// where they are not.
#[must_use]
pub fn huge_pages_are_cheap() -> bool {
    if cfg!(any(test, fuzzing)) {
        // Some milliseconds are long there.
        return false;
    }
    let begun = Instant::now();
    let Ok(tried) = map(TRIED * HUGE, true) else {
        return false;
    };
    tried.advise(Advice::PopulateWrite).is_ok() && begun.elapsed() < SMALL_PAGES * TRIED as u32
}

/// Anonymous memory, in huge pages if `huge`.
pub(crate) fn map(size: usize, huge: bool) -> io::Result<MmapMut> {
    let buffer = MmapMut::map_anon(size)?;
    if huge {
        // Only faster: a kernel without huge pages refuses.
        let _ = buffer.advise(Advice::HugePage);
    }
    Ok(buffer)
}

/// Whether so many bytes could be mapped now.
///
/// # Errors
/// They could not.
pub(crate) fn is_there(size: usize) -> io::Result<()> {
    MmapMut::map_anon(size).map(drop)
}

/// Has the kernel put memory behind a buffer now, rather than at its first use. Says whether that
/// was dear: far more than small pages take, which machines can come to after any number of pages.
pub(crate) fn populate(buffer: &MmapMut) -> bool {
    let begun = Instant::now();
    // Only earlier: kernels before 5.14 refuse.
    let _ = buffer.advise(Advice::PopulateWrite);
    begun.elapsed() > SMALL_PAGES * DEAR * buffer.len().div_ceil(HUGE) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_there_and_empty() {
        for huge in [false, true, huge_pages_are_cheap()] {
            let buffer = map(3 << 20, huge).unwrap();
            populate(&buffer);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }
}
