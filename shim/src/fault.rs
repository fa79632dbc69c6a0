//! Faults on demand, at the boundaries of steps. In builds with debug assertions alone: what is
//! released has no trace of this.
//!
//! [`FILE`], if it is there, holds the name of a step and what happens there:
//!
//! ```text
//! dump error 28     the step fails with this error number
//! dump hang         it does not end
//! dump panic        a bug
//! dump kill         the shim dies of SIGKILL
//! dump wait         FILE.reached is made; on with the step once FILE is gone
//! ```

/// Found in every program that has these faults, and in no other.
#[cfg(debug_assertions)]
pub const FILE: &str = "/run/kybernate/faults";

#[cfg(debug_assertions)]
mod on {
    use std::{fs, io, path::Path, time::Duration};

    use super::FILE;

    const POLL: Duration = Duration::from_millis(5);
    /// Longer than any test waits.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    enum Fault {
        Hang,
        Wait,
    }

    fn look(step: &str) -> io::Result<Option<Fault>> {
        let text = fs::read_to_string(FILE).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(step) {
            return Ok(None);
        }
        match (words.next(), words.next()) {
            (Some("error"), Some(number)) => {
                let number = number
                    .parse()
                    .unwrap_or(rustix::io::Errno::IO.raw_os_error());
                Err(io::Error::from_raw_os_error(number))
            }
            (Some("panic"), _) => panic!("a fault on demand at step {step}"),
            (Some("kill"), _) => {
                let _ = crate::sys::kill(std::process::id(), nix::libc::SIGKILL);
                Ok(Some(Fault::Hang))
            }
            (Some("hang"), _) => Ok(Some(Fault::Hang)),
            (Some("wait"), _) => {
                fs::write(format!("{FILE}.reached"), step)?;
                Ok(Some(Fault::Wait))
            }
            _ => Err(io::Error::other(format!("{FILE}: {text:?} is no fault"))),
        }
    }

    /// What is to happen at a step, in a future.
    pub async fn at(step: &str) -> io::Result<()> {
        match look(step)? {
            None => {}
            Some(Fault::Hang) => tokio::time::sleep(FOR_EVER).await,
            Some(Fault::Wait) => {
                while Path::new(FILE).exists() {
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        Ok(())
    }

    /// What is to happen at a step, on a thread that may block.
    pub fn block_at(step: &str) -> io::Result<()> {
        match look(step)? {
            None => {}
            // A thread can't be dropped, so it comes back when nobody waits for it any more.
            Some(_) => {
                while Path::new(FILE).exists() {
                    std::thread::sleep(POLL);
                }
            }
        }
        Ok(())
    }
}

#[cfg(not(debug_assertions))]
#[allow(
    clippy::unused_async,
    clippy::unnecessary_wraps,
    reason = "as with faults"
)]
mod on {
    use std::io;

    /// Nothing.
    pub async fn at(_: &str) -> io::Result<()> {
        Ok(())
    }

    /// Nothing.
    pub fn block_at(_: &str) -> io::Result<()> {
        Ok(())
    }
}

pub use on::{at, block_at};
