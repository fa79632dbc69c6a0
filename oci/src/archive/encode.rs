//! Turns the content of one frame into the cheapest fitting form.

use zstd::zstd_safe::{self, CCtx, CParameter};

use super::error::WriteError;
use super::frame::{self, Piece};
use super::level::Level;
use super::words::Words;

/// Samples per frame and bytes per sample.
const SAMPLES: usize = 8;
const SAMPLE: usize = 4 << 10;
/// A sample that shrinks to no less than this share is stored.
const WORTHLESS: f64 = 0.97;
/// At level `fast`, while the disk waits, only what shrinks to this share is worth that.
const WORTH_WAITING: f64 = 0.4;
/// How much larger the word encoder's result may be at the default level: it is faster.
const WORDS_MARGIN: f64 = 1.1;

/// The form that a frame took.
pub(super) enum Encoded {
    /// That many bytes of the output buffer are the frame.
    Compressed(usize),
    /// Stored, with runs of zeros left out.
    Stored(Vec<Piece>),
}

/// What suits a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Store,
    Words,
    Zstd,
}

/// Compresses one frame after another.
pub(super) struct Encoder {
    level: Level,
    context: CCtx<'static>,
    probe: CCtx<'static>,
    words: Words,
    scratch: Vec<u8>,
    sample: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(level: Level) -> Result<Self, WriteError> {
        let (main, probe) = match level {
            Level::Fast => (-3, -3),
            Level::Default => (1, 1),
            Level::High => (9, 9),
            Level::Zstd(level) => (level, 1),
        };
        Ok(Self {
            level,
            context: context(main)?,
            probe: context(probe)?,
            words: Words::new(),
            scratch: vec![0; zstd_safe::compress_bound(SAMPLES * SAMPLE) + 1024],
            sample: Vec::with_capacity(SAMPLES * SAMPLE),
        })
    }

    /// Memory of one encoder at `level` in bytes, roughly.
    pub(super) fn memory(level: Level) -> usize {
        match level {
            Level::Fast | Level::Default => 4 << 20,
            Level::High => 32 << 20,
            Level::Zstd(level) if level < 5 => 8 << 20,
            Level::Zstd(_) => 64 << 20,
        }
    }

    /// Encodes `content`; `output` is as large as a frame's content may be, and `awaited` says
    /// whether the disk has nothing else to do.
    pub(super) fn encode(
        &mut self,
        content: &[u8],
        output: &mut [u8],
        awaited: bool,
    ) -> Result<Encoded, WriteError> {
        let room = output.len().min(content.len());
        let output = &mut output[..room];
        let size = match self.choose(content, awaited)? {
            Choice::Store => None,
            Choice::Words => self.words.encode(content, output),
            Choice::Zstd => match self.context.compress2(output, content) {
                Ok(size) => Some(size),
                Err(code) if is_too_small(code) => None,
                Err(code) => return Err(refused(code)),
            },
        };
        Ok(match size {
            Some(size) => Encoded::Compressed(size),
            None => Encoded::Stored(frame::pieces(content)),
        })
    }

    /// Tries a sample of `content`.
    fn choose(&mut self, content: &[u8], awaited: bool) -> Result<Choice, WriteError> {
        if frame::is_zero(content) {
            return Ok(Choice::Store);
        }
        self.take_sample(content);
        let size = self.sample.len() as f64;
        let zstd = self
            .probe
            .compress2(self.scratch.as_mut_slice(), &self.sample)
            .map_err(refused)? as f64;
        Ok(match self.level {
            Level::Fast if awaited && zstd > size * WORTH_WAITING => Choice::Store,
            Level::Fast | Level::Default | Level::High => {
                let words = self.words.encode(&self.sample, &mut self.scratch);
                let words = words.map_or(size, |words| words as f64);
                let margin = match self.level {
                    Level::High => 1.0,
                    _ => WORDS_MARGIN,
                };
                if words.min(zstd) > size * WORTHLESS {
                    Choice::Store
                } else if words <= zstd * margin {
                    Choice::Words
                } else {
                    Choice::Zstd
                }
            }
            _ if zstd > size * WORTHLESS => Choice::Store,
            _ => Choice::Zstd,
        })
    }

    fn take_sample(&mut self, content: &[u8]) {
        self.sample.clear();
        if content.len() <= SAMPLES * SAMPLE {
            self.sample.extend_from_slice(content);
            return;
        }
        // Whole words at their places.
        let stride = (content.len() - SAMPLE) / (SAMPLES - 1) / 8 * 8;
        for at in 0..SAMPLES {
            self.sample
                .extend_from_slice(&content[at * stride..][..SAMPLE]);
        }
    }
}

fn context(level: i32) -> Result<CCtx<'static>, WriteError> {
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(level),
        CParameter::ChecksumFlag(true),
        CParameter::ContentSizeFlag(true),
    ] {
        context.set_parameter(parameter).map_err(refused)?;
    }
    Ok(context)
}

fn is_too_small(code: usize) -> bool {
    let kind = zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall;
    zstd_safe::is_error_kind(code, kind)
}

fn refused(code: usize) -> WriteError {
    WriteError::Compress {
        reason: zstd_safe::get_error_name(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of which half the bytes are noise.
    fn half_compressible() -> Vec<u8> {
        let mut state = 1_u64;
        let mut word = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state >> 32
        };
        (0..128 << 10).flat_map(|_| word().to_le_bytes()).collect()
    }

    #[test]
    fn fast_compresses_what_the_disk_does_not_wait_for() {
        let content = half_compressible();
        let mut output = vec![0; content.len()];
        let mut encoder = Encoder::new(Level::Fast).unwrap();
        let mut encode = |awaited| encoder.encode(&content, &mut output, awaited).unwrap();
        assert!(matches!(encode(true), Encoded::Stored(_)));
        let Encoded::Compressed(size) = encode(false) else {
            panic!("stored");
        };
        assert!(size < content.len() * 6 / 10, "{size}");
    }

    #[test]
    fn fast_compresses_very_compressible_memory_in_any_case() {
        let content = b"kybernate ".repeat(100 << 10);
        let mut output = vec![0; content.len()];
        let mut encoder = Encoder::new(Level::Fast).unwrap();
        for awaited in [true, false] {
            let encoded = encoder.encode(&content, &mut output, awaited).unwrap();
            assert!(matches!(encoded, Encoded::Compressed(_)));
        }
    }
}
