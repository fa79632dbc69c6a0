//! Turns the content of one frame into the cheapest fitting form.

use zstd::zstd_safe::{self, CCtx, CParameter};

use super::error::WriteError;
use super::frame::{self, Piece};
use super::level::Level;

/// Samples per frame and bytes per sample.
const SAMPLES: usize = 8;
const SAMPLE: usize = 8 << 10;

/// The form that a frame took.
pub(super) enum Encoded {
    /// That many bytes of the output buffer are the frame.
    Compressed(usize),
    /// Stored, with runs of zeros left out.
    Stored(Vec<Piece>),
}

/// Compresses one frame after another.
pub(super) struct Encoder {
    level: Level,
    context: CCtx<'static>,
    probe: CCtx<'static>,
    scratch: Vec<u8>,
    sample: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(level: Level) -> Result<Self, WriteError> {
        let mut context = CCtx::create();
        let zstd_level = match level {
            Level::Fast => -7,
            Level::Default => -3,
            Level::High => 9,
            Level::Zstd(level) => level,
        };
        set(&mut context, CParameter::CompressionLevel(zstd_level))?;
        set(&mut context, CParameter::ChecksumFlag(true))?;
        set(&mut context, CParameter::ContentSizeFlag(true))?;
        let mut probe = CCtx::create();
        set(&mut probe, CParameter::CompressionLevel(-3))?;
        Ok(Self {
            level,
            context,
            probe,
            scratch: vec![0; zstd_safe::compress_bound(SAMPLES * SAMPLE)],
            sample: Vec::with_capacity(SAMPLES * SAMPLE),
        })
    }

    /// Memory of one encoder at `level` in bytes, roughly.
    pub(super) fn memory(level: Level) -> usize {
        match level {
            Level::Fast | Level::Default => 2 << 20,
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
        let worth = match self.level {
            Level::Fast => 0.4,
            _ => 0.97,
        };
        if frame::is_zero(content) || self.ratio(content)? > worth {
            return Ok(Encoded::Stored(frame::pieces(content)));
        }
        let room = output.len().min(content.len());
        match self.context.compress2(&mut output[..room], content) {
            Ok(size) => Ok(Encoded::Compressed(size)),
            Err(code)
                if zstd_safe::is_error_kind(
                    code,
                    zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall,
                ) =>
            {
                Ok(Encoded::Stored(frame::pieces(content)))
            }
            Err(code) => Err(refused(code)),
        }
    }

    /// What a sample of `content` compresses to, as a share of its size.
    fn ratio(&mut self, content: &[u8]) -> Result<f64, WriteError> {
        self.sample.clear();
        if content.len() <= SAMPLES * SAMPLE {
            self.sample.extend_from_slice(content);
        } else {
            let stride = (content.len() - SAMPLE) / (SAMPLES - 1);
            for at in 0..SAMPLES {
                self.sample
                    .extend_from_slice(&content[at * stride..][..SAMPLE]);
            }
        }
        let size = self
            .probe
            .compress2(self.scratch.as_mut_slice(), &self.sample)
            .map_err(refused)?;
        Ok(size as f64 / self.sample.len() as f64)
    }
}

fn set(context: &mut CCtx<'static>, parameter: CParameter) -> Result<(), WriteError> {
    context.set_parameter(parameter).map(drop).map_err(refused)
}

fn refused(code: usize) -> WriteError {
    WriteError::Compress {
        reason: zstd_safe::get_error_name(code),
    }
}
