//! Huge pages for the host's copy of device memory.
//!
//! The driver maps its copy itself, with ordinary anonymous memory, and faults it in page by page:
//! with huge pages that takes half the time. The kernel has a switch for all processes; it is
//! turned for the operation and turned back by the helper, whatever happens.

use kybernate_config::settings::Thp;
use kybernate_cuda::protocol::Op;

use super::helper::Helper;

/// The kernel's switch (Documentation/admin-guide/mm/transhuge.rst).
const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Less memory than this is moved in no time with small pages, too.
const WORTH_IT: u64 = 128 << 20;

/// Turns the switch for `bytes` of device memory. Returns whether huge pages are in use. A kernel
/// that can't is no reason to fail.
pub async fn hold(helper: &Helper, thp: Thp, bytes: u64) -> bool {
    let wanted = match thp {
        Thp::Always => true,
        Thp::Auto => bytes >= WORTH_IT,
        Thp::Inherit => false,
    };
    if !wanted {
        return false;
    }
    let op = Op::Hold {
        path: SWITCH.into(),
        value: "always".into(),
    };
    helper
        .set("switch to huge pages", op)
        .await
        .inspect_err(|error| tracing::warn!(%error, "without huge pages"))
        .is_ok()
}
