//! Headers of frames.

/// Length of a header in bytes.
pub(super) const HEADER: usize = 8;

/// Most bytes of payload that a frame may carry to the runtime: a ttrpc message and its header.
pub const MAX_PAYLOAD: usize = 10 + (4 << 20);

/// Puts the header in front of the payload.
pub(super) fn encode(id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The connection's id and the payload's length.
pub(super) fn decode(header: [u8; HEADER]) -> (u32, usize) {
    let [a, b, c, d, e, f, g, h] = header;
    (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]) as usize,
    )
}
