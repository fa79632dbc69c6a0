//! What systemd is told, if it wants to know: one datagram per state, to the socket that
//! `NOTIFY_SOCKET` names. See `sd_notify(3)`.

use std::{
    env, io,
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr, unix::net::UnixDatagram},
    time::Duration,
};

/// The way to systemd; nothing happens where there is none.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// What the environment says.
    ///
    /// # Errors
    /// It names a socket that can't be one.
    pub fn from_env() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::default());
        };
        let bytes = name.as_encoded_bytes();
        let to = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        let watchdog = env::var("WATCHDOG_USEC").ok();
        Ok(Self {
            to: Some(to),
            watchdog: watchdog
                .and_then(|usec| usec.parse().ok())
                .map(Duration::from_micros),
        })
    }

    /// How often a sign of life is wanted.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3)
    }

    /// Calls are taken.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=Passing calls on to containerd");
    }

    /// The end is near.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Waiting for calls in flight");
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, state: &str) {
        let Some(to) = &self.to else { return };
        let sent =
            UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), to));
        if let Err(error) = sent {
            tracing::warn!("systemd does not listen: {error}");
        }
    }
}
