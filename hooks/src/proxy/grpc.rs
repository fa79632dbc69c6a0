//! gRPC in HTTP/2, as far as this process answers calls itself.
//!
//! ```text
//! request   :path /runtime.v1.RuntimeService/CheckpointContainer    grpc-timeout: 119S
//! message   compressed? u8 | length u32, big-endian | protobuf
//! answer    headers, message, trailers grpc-status: 0
//! error     headers alone, with grpc-status and grpc-message
//! ```

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use tonic::{Code, Status};

use super::Reply;

/// The call that is served here.
pub const CHECKPOINT_CONTAINER: &str = "/runtime.v1.RuntimeService/CheckpointContainer";
/// Trailer that says how a call has ended.
pub const STATUS: &str = "grpc-status";
/// Header with the time that a caller waits.
const TIMEOUT: &str = "grpc-timeout";
/// Flag and length before a message.
const PREFIX: usize = 5;

/// Why a body is not one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Only what is written plainly is read here.
    #[error("the request is compressed; send it without grpc-encoding")]
    Compressed,
    /// Too short, too long, or another length than it says.
    #[error("the request is not one whole message")]
    Length,
}

/// The one message of a unary request's body.
///
/// # Errors
/// It is compressed, or not one message.
pub fn message(body: &Bytes) -> Result<Bytes, FrameError> {
    let (Some(flag), Some(length)) = (body.first(), body.get(1..PREFIX)) else {
        return Err(FrameError::Length);
    };
    if *flag != 0 {
        return Err(FrameError::Compressed);
    }
    let length = length.iter().fold(0, |sum, b| (sum << 8) | usize::from(*b));
    if body.len() - PREFIX != length {
        return Err(FrameError::Length);
    }
    Ok(body.slice(PREFIX..))
}

/// How long the caller of a request waits; `None` when it says nothing that can be read.
#[must_use]
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    // At most eight digits, says the protocol; this also keeps the sums below small.
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// A unary answer.
#[must_use]
pub fn answer(message: &[u8]) -> Response<Reply> {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    // An answer of this process is a few bytes.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let mut response = Response::new(Reply::local(framed.freeze(), trailers));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An error without an answer.
#[must_use]
pub fn error(status: &Status) -> Response<Reply> {
    let (parts, ()) = status.clone().into_http().into_parts();
    Response::from_parts(parts, Reply::empty())
}

/// Trailers that end an answer with an error.
#[must_use]
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It fails on texts that no header can carry, and these are percent-encoded before.
    let _ = status.add_header(&mut trailers);
    trailers
}

/// How a call has ended, from trailers or from the headers of an answer without any.
#[must_use]
pub fn code(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(STATUS)
        .map(|value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plain_message_is_read_and_nothing_else() {
        let framed = |bytes: &[u8]| message(&Bytes::copy_from_slice(bytes));
        assert_eq!(framed(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), [7, 8][..]);
        assert_eq!(framed(&[0, 0, 0, 0, 0]).unwrap(), [][..]);
        assert_eq!(framed(&[1, 0, 0, 0, 1, 7]), Err(FrameError::Compressed));
        for bytes in [
            &[][..],
            &[0, 0, 0],
            &[0, 0, 0, 0, 2, 7],
            &[0, 0, 0, 0, 1, 7, 8],
            &[0, 255, 255, 255, 255, 1],
        ] {
            assert_eq!(framed(bytes), Err(FrameError::Length), "{bytes:?}");
        }
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_str(text).unwrap());
            timeout(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("119987654u"), None);
        assert_eq!(read("11998765u"), Some(Duration::from_micros(11_998_765)));
        assert_eq!(read("5n"), Some(Duration::from_nanos(5)));
        for text in ["", "S", "1", "1x", "-1S", "1 S", "1.5S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn errors_keep_their_code_and_their_text() {
        let status = Status::failed_precondition("a: b\n\u{e4} %");
        for headers in [error(&status).headers().clone(), trailers(&status)] {
            assert_eq!(code(&headers), Some(Code::FailedPrecondition));
            let read = Status::from_header_map(&headers).unwrap();
            assert_eq!(read.message(), status.message());
        }
    }
}
