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
/// At level `fast` only what shrinks to this share is worth the processor's time.
const WORTH_FAST: f64 = 0.4;
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

    /// Encodes `content`; `output` is as large as a frame's content may be.
    pub(super) fn encode(
        &mut self,
        content: &[u8],
        output: &mut [u8],
    ) -> Result<Encoded, WriteError> {
        let room = output.len().min(content.len());
        let output = &mut output[..room];
        let size = match self.choose(content)? {
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
    fn choose(&mut self, content: &[u8]) -> Result<Choice, WriteError> {
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
            Level::Fast if zstd > size * WORTH_FAST => Choice::Store,
            Level::Default | Level::High => {
                let words = self.words.encode(&self.sample, &mut self.scratch);
                let words = words.map_or(size, |words| words as f64);
                let margin = match self.level {
                    Level::Default => WORDS_MARGIN,
                    _ => 1.0,
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
