//! Writes an archive while its content arrives.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use memmap2::MmapMut;
use sha2::{Digest as _, Sha256};

use super::control::Control;
use super::error::{NameFault, WriteError};
use super::options::WriteOptions;
use super::pipeline::{Mark, Output, Pipeline};
use super::seal::Encryption;
use super::sink::Sink;
use super::stages::{self, Stages, Written};
use super::stream::EntryStream;
use super::{BLOCK, FIRST, MANIFEST_MAX, frame, header, name, padding, seek};
use crate::manifest::{Entry, FILE, FORMAT, Manifest};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Size of the file in bytes.
    pub archive_bytes: u64,
    /// Size of the tar in it in bytes.
    pub content_bytes: u64,
    /// Lower-case hex sha256 of `kybernate.json`, which stands for the whole archive.
    pub manifest_sha256: String,
}

/// A frame that is being filled.
#[derive(Debug)]
struct Fill {
    buffer: MmapMut,
    size: usize,
    marks: Vec<Mark>,
}

/// Writes an archive.
///
/// The caller's thread only fills frames; hashing, compressing and writing happen on threads of
/// the writer's own. Dropping it without [`Writer::finish`] stops them; the file then holds
/// nothing of use.
#[derive(Debug)]
pub struct Writer {
    pipeline: Arc<Pipeline>,
    stages: Option<Stages>,
    frame_size: usize,
    fill: Option<Fill>,
    /// Number of the next frame.
    number: u64,
    /// Bytes of tar so far.
    position: u64,
    entries: Vec<Entry>,
    names: HashSet<String>,
    /// Frames that hold the header of a stream, with what belongs there.
    patches: Vec<(u64, Vec<u8>)>,
    /// The entry whose stream was dropped before its end.
    unfinished: Option<String>,
}

impl Writer {
    /// Starts an archive in `file`: empty, open for writing, only used by the writer from now on.
    ///
    /// # Errors
    /// Options that contradict each other, no memory, no threads.
    pub fn new(file: File, options: WriteOptions) -> Result<Self, WriteError> {
        Self::start(file, options, None)
    }

    /// Starts an archive that is encrypted: `file` never has a byte of it in plain text. It takes
    /// up to 128 KiB of memory more than `options` say for every stream.
    ///
    /// # Errors
    /// See [`Writer::new`]; no recipients, or too many; no random numbers.
    pub fn encrypted(
        file: File,
        options: WriteOptions,
        encryption: &Encryption,
    ) -> Result<Self, WriteError> {
        Self::start(file, options, Some(encryption))
    }

    fn start(
        file: File,
        options: WriteOptions,
        encryption: Option<&Encryption>,
    ) -> Result<Self, WriteError> {
        let frame_size = options.frame_size;
        let (workers, frames, outputs) = options.shares()?;
        let pipeline = Arc::new(Pipeline::new(frame_size, frames, outputs));
        stages::have_room(workers)?;
        let sink = Sink::new(file, Arc::clone(&pipeline), encryption)?;
        let stages = Stages::start(&pipeline, sink, options.level, workers)?;
        Ok(Self {
            pipeline,
            stages: Some(stages),
            frame_size,
            fill: None,
            number: 0,
            position: 0,
            entries: Vec::new(),
            names: HashSet::new(),
            patches: Vec::new(),
            unfinished: None,
        })
    }

    /// A handle that cancels and observes this writer.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.pipeline))
    }

    /// Adds directory `name`. `checkpoint/` needs no call: it always comes first.
    ///
    /// # Errors
    /// Bad or duplicate name; whatever stopped the writer.
    pub fn directory(&mut self, name: &str) -> Result<(), WriteError> {
        let mut name = name.to_owned();
        if !name.ends_with('/') {
            name.push('/');
        }
        self.enter(&name)?;
        self.append(&header::encode(&name, 0))
    }

    /// Adds file `name` with content `data`.
    ///
    /// # Errors
    /// Bad or duplicate name; whatever stopped the writer.
    pub fn bytes(&mut self, name: &str, data: &[u8]) -> Result<(), WriteError> {
        self.file(name, &mut &data[..], data.len() as u64)
    }

    /// Adds file `name` with the `size` bytes that `reader` yields.
    ///
    /// # Errors
    /// Bad or duplicate name; a reader that fails or does not end after `size` bytes, which
    /// leaves the archive unusable; whatever stopped the writer.
    pub fn file(&mut self, name: &str, reader: &mut dyn Read, size: u64) -> Result<(), WriteError> {
        self.enter_file(name)?;
        self.append(&header::encode(name, size))?;
        self.unfinished = Some(name.to_owned());
        let mut stream = EntryStream::new(self, None);
        let source = |source| WriteError::Source {
            name: name.to_owned(),
            source: Arc::new(source),
        };
        let found = loop {
            let left = size - stream.size();
            if left == 0 {
                break size + (read(reader, &mut [0]).map_err(source)?) as u64;
            }
            let space = stream.space()?;
            let space_size =
                usize::try_from(left).map_or(space.len(), |left| left.min(space.len()));
            match read(reader, &mut space[..space_size]).map_err(source)? {
                0 => break stream.size(),
                count => stream.filled(count),
            }
        };
        if found != size {
            return Err(WriteError::Length {
                name: name.to_owned(),
                expected: size,
                found,
            });
        }
        stream.finish().map(drop)
    }

    /// Adds file `name` whose size will be known at its end.
    ///
    /// # Errors
    /// Bad or duplicate name; whatever stopped the writer.
    pub fn stream(&mut self, name: &str) -> Result<EntryStream<'_>, WriteError> {
        self.enter_file(name)?;
        self.flush()?;
        let number = self.number;
        self.number += 1;
        self.position += BLOCK as u64;
        self.pipeline.took(BLOCK);
        self.pipeline.deliver(
            number,
            Output::Built {
                bytes: frame::stored(&header::encode(name, 0)),
                content: BLOCK,
                open: true,
            },
            Vec::new(),
        );
        self.unfinished = Some(name.to_owned());
        Ok(EntryStream::new(self, Some(number)))
    }

    /// Ends the archive with `manifest`, whose format, entries and digest this fills in, and makes the
    /// file durable.
    ///
    /// # Errors
    /// Whatever stopped the writer; a manifest over 64 MiB.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<Summary, WriteError> {
        self.usable()?;
        self.lead()?;
        self.flush()?;
        self.pipeline.close(self.number);
        let Some(stages) = self.stages.take() else {
            return Err(WriteError::Cancelled);
        };
        let joined = stages.join();
        self.pipeline.check()?;
        let Some(mut written) = joined? else {
            return Err(WriteError::Panic { thread: "writing" });
        };
        // An entry that ended with its last frame.
        for _ in self.fill.take().into_iter().flat_map(|fill| fill.marks) {
            written.end();
        }
        let Written {
            mut sink, digests, ..
        } = written;
        sink.settle()?;
        for (number, bytes) in &self.patches {
            sink.replace(*number as usize, bytes)?;
        }
        let mut entries = std::mem::take(&mut self.entries);
        let files = entries
            .iter_mut()
            .filter(|entry| !entry.name.ends_with('/'));
        for (entry, digest) in files.zip(digests) {
            entry.sha256 = digest;
        }
        manifest.format = FORMAT;
        manifest.entries = entries;
        manifest.frames = sink.digest();
        let json = json(&manifest)?;
        let mut last = header::encode(FILE, json.len() as u64).to_vec();
        last.extend_from_slice(&json);
        last.resize(last.len() + padding(json.len() as u64) + 2 * BLOCK, 0);
        self.pipeline.took(last.len());
        let content_bytes = self.position + last.len() as u64;
        sink.frame(Output::Built {
            bytes: frame::stored(&last),
            content: last.len(),
            open: false,
        })?;
        sink.append(&seek::encode(&sink.rows()))?;
        sink.end()?;
        self.pipeline.check()?;
        sink.sync()?;
        Ok(Summary {
            archive_bytes: sink.size(),
            content_bytes,
            manifest_sha256: super::hex(&Sha256::digest(&json)),
        })
    }

    /// Ends the entry whose content was put; `header` is the frame of its header, where that has
    /// to be patched.
    pub(super) fn end_entry(&mut self, size: u64, header: Option<u64>) -> Result<(), WriteError> {
        self.fill()?.marks.push(Mark::End);
        self.append(&[0; BLOCK][..padding(size)])?;
        self.pipeline.check()?;
        if let Some(entry) = self.entries.last_mut() {
            entry.size = size;
            if let Some(number) = header {
                let header = header::encode(&entry.name, size);
                self.patches.push((number, frame::stored(&header)));
            }
        }
        self.unfinished = None;
        Ok(())
    }

    /// The free rest of the current frame.
    pub(super) fn space(&mut self) -> Result<&mut [u8], WriteError> {
        self.pipeline.check()?;
        let fill = self.fill()?;
        let start = fill.size;
        Ok(&mut fill.buffer[start..])
    }

    fn usable(&self) -> Result<(), WriteError> {
        self.pipeline.check()?;
        match &self.unfinished {
            Some(name) => Err(WriteError::Unfinished { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Puts the directory that comes first.
    fn lead(&mut self) -> Result<(), WriteError> {
        if self.entries.is_empty() {
            self.directory(FIRST)?;
        }
        Ok(())
    }

    fn enter_file(&mut self, name: &str) -> Result<(), WriteError> {
        if name.ends_with('/') {
            return Err(WriteError::Name {
                name: name.to_owned(),
                fault: NameFault::Component,
            });
        }
        self.enter(name)
    }

    /// Notes entry `name`, whose header comes next.
    fn enter(&mut self, name: &str) -> Result<(), WriteError> {
        self.usable()?;
        let refuse = |fault| WriteError::Name {
            name: name.to_owned(),
            fault,
        };
        name::check(name).map_err(refuse)?;
        if name == FILE {
            return Err(refuse(NameFault::Reserved));
        }
        if name != FIRST {
            self.lead()?;
        }
        let bare = name.strip_suffix('/').unwrap_or(name);
        if self.names.contains(bare) || self.names.contains(&format!("{bare}/")) {
            return Err(refuse(NameFault::Duplicate));
        }
        if name::parent(name).is_some_and(|parent| !self.names.contains(parent)) {
            return Err(refuse(NameFault::Orphan));
        }
        self.names.insert(name.to_owned());
        self.entries.push(Entry {
            name: name.to_owned(),
            size: 0,
            offset: self.position,
            sha256: String::new(),
        });
        Ok(())
    }

    /// The frame that is being filled; waits for memory.
    fn fill(&mut self) -> Result<&mut Fill, WriteError> {
        if self.fill.is_none() {
            self.fill = Some(Fill {
                buffer: self.pipeline.buffer()?,
                size: 0,
                marks: Vec::new(),
            });
        }
        self.fill.as_mut().ok_or(WriteError::Cancelled)
    }

    /// Counts `size` bytes that were put at the end of the current frame.
    pub(super) fn grew(&mut self, size: usize, content: bool) {
        let frame_size = self.frame_size;
        let Some(fill) = &mut self.fill else {
            assert_eq!(size, 0, "bytes were announced that no space was given for");
            return;
        };
        let end = fill.size + size;
        assert!(end <= frame_size, "more bytes were announced than fit");
        if content && size > 0 {
            match fill.marks.last_mut() {
                Some(Mark::Content(range)) if range.end == fill.size => range.end = end,
                _ => fill.marks.push(Mark::Content(fill.size..end)),
            }
        }
        fill.size = end;
        self.position += size as u64;
        self.pipeline.took(size);
        if end == frame_size {
            self.submit();
        }
    }

    /// Adds bytes that are no content.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let fill = self.fill()?;
            let start = fill.size;
            let size = bytes.len().min(fill.buffer.len() - start);
            fill.buffer[start..start + size].copy_from_slice(&bytes[..size]);
            self.grew(size, false);
            bytes = &bytes[size..];
        }
        Ok(())
    }

    /// Ends the current frame.
    fn flush(&mut self) -> Result<(), WriteError> {
        self.submit();
        self.pipeline.check()
    }

    /// Hands the current frame on. An empty one stays, with the ends of entries that it marks.
    fn submit(&mut self) {
        if let Some(fill) = self.fill.take_if(|fill| fill.size > 0) {
            self.pipeline
                .submit(self.number, fill.buffer, fill.size, fill.marks);
            self.number += 1;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(stages) = self.stages.take() {
            self.pipeline.fail(WriteError::Cancelled);
            let _ = stages.join();
        }
        self.fill = None;
        self.pipeline.clear();
    }
}

fn json(manifest: &Manifest) -> Result<Vec<u8>, WriteError> {
    let mut json = serde_json::to_vec_pretty(manifest).map_err(|source| WriteError::Manifest {
        source: Arc::new(source),
    })?;
    json.push(b'\n');
    if json.len() > MANIFEST_MAX {
        return Err(WriteError::ManifestSize {
            size: json.len(),
            max: MANIFEST_MAX,
        });
    }
    Ok(json)
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
