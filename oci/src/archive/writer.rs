//! Writes an archive while its content arrives.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use memmap2::MmapMut;
use sha2::{Digest as _, Sha256};

use super::control::Control;
use super::encode::{Encoded, Encoder};
use super::error::{NameFault, WriteError};
use super::level::Level;
use super::pipeline::{Alarm, Mark, Output, Pipeline};
use super::sink::{STAGING, Sink};
use super::{BLOCK, FIRST, FRAME_MAX, FRAME_MIN, MANIFEST_MAX, frame, header, name, padding, seek};
use crate::manifest::{Entry, FILE, FORMAT, Manifest};

/// How to write an archive.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// How hard to compress.
    pub level: Level,
    /// Bound on all memory of the writer in bytes: frames that wait to be compressed and frames
    /// that wait to be written.
    pub buffer: u64,
    /// Compressing threads; 0 for one per processor.
    pub workers: usize,
    /// Bytes of tar per frame, 64 KiB to 64 MiB.
    pub frame_size: usize,
}

impl Default for WriteOptions {
    /// The default level, 256 MiB of memory, a thread per processor, frames of 4 MiB.
    fn default() -> Self {
        Self {
            level: Level::Default,
            buffer: 256 << 20,
            workers: 0,
            frame_size: 4 << 20,
        }
    }
}

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

#[derive(Debug)]
struct Threads {
    others: Vec<(&'static str, JoinHandle<()>)>,
    hashing: JoinHandle<Vec<String>>,
    writing: JoinHandle<Option<Sink>>,
}

/// Writes an archive.
///
/// The caller's thread only fills frames; hashing, compressing and writing happen on threads of
/// the writer's own. Dropping it without [`Writer::finish`] stops them; the file then holds
/// nothing of use.
#[derive(Debug)]
pub struct Writer {
    pipeline: Arc<Pipeline>,
    threads: Option<Threads>,
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
        let frame_size = options.frame_size;
        if !(FRAME_MIN..=FRAME_MAX).contains(&frame_size) {
            return Err(WriteError::FrameSize { frame_size });
        }
        let workers = match options.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let (frames, outputs) = shares(&options, workers)?;
        let pipeline = Arc::new(Pipeline::new(frame_size, frames, outputs));
        let sink = Sink::new(file, Arc::clone(&pipeline))?;
        let threads = start(&pipeline, sink, options.level, workers).inspect_err(|error| {
            // Those that did start end themselves.
            pipeline.fail(error.clone());
        })?;
        Ok(Self {
            pipeline,
            threads: Some(threads),
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
        let mut stream = EntryStream {
            writer: self,
            size: 0,
            header: None,
        };
        let source = |source| WriteError::Source {
            name: name.to_owned(),
            source: Arc::new(source),
        };
        let found = loop {
            let left = size - stream.size;
            if left == 0 {
                break size + (read(reader, &mut [0]).map_err(source)?) as u64;
            }
            let space = stream.space()?;
            let space_size =
                usize::try_from(left).map_or(space.len(), |left| left.min(space.len()));
            match read(reader, &mut space[..space_size]).map_err(source)? {
                0 => break stream.size,
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
            },
        );
        self.unfinished = Some(name.to_owned());
        Ok(EntryStream {
            writer: self,
            size: 0,
            header: Some(number),
        })
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
        let Some(threads) = self.threads.take() else {
            return Err(WriteError::Cancelled);
        };
        let joined = join(threads);
        self.pipeline.check()?;
        let (digests, sink) = joined?;
        let Some(mut sink) = sink else {
            return Err(WriteError::Panic { thread: "writing" });
        };
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
        })?;
        sink.append(&seek::encode(&sink.rows()))?;
        sink.settle()?;
        self.pipeline.check()?;
        sink.sync()?;
        Ok(Summary {
            archive_bytes: sink.size(),
            content_bytes,
            manifest_sha256: super::hex(&Sha256::digest(&json)),
        })
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
    fn grew(&mut self, size: usize, content: bool) {
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

    fn submit(&mut self) {
        if let Some(fill) = self.fill.take() {
            self.pipeline
                .submit(self.number, fill.buffer, fill.size, fill.marks);
            self.number += u64::from(fill.size > 0);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            self.pipeline.fail(WriteError::Cancelled);
            let _ = join(threads);
        }
        self.fill = None;
        self.pipeline.clear();
    }
}

/// An entry whose size is known at its end.
#[derive(Debug)]
pub struct EntryStream<'a> {
    writer: &'a mut Writer,
    size: u64,
    /// Number of the frame that holds the header, where that has to be patched.
    header: Option<u64>,
}

impl EntryStream<'_> {
    /// The free rest of the current frame, never empty; waits while the writer's memory is used
    /// up.
    ///
    /// # Errors
    /// Whatever stopped the writer.
    pub fn space(&mut self) -> Result<&mut [u8], WriteError> {
        let fill = self.writer.fill()?;
        let start = fill.size;
        Ok(&mut fill.buffer[start..])
    }

    /// Says that the first `count` bytes of [`EntryStream::space`] are content now.
    ///
    /// # Panics
    /// When that is more than the space.
    pub fn filled(&mut self, count: usize) {
        self.writer.grew(count, true);
        self.size += count as u64;
    }

    /// Ends the entry and returns its size in bytes.
    ///
    /// # Errors
    /// Whatever stopped the writer.
    pub fn finish(self) -> Result<u64, WriteError> {
        let writer = self.writer;
        writer.fill()?.marks.push(Mark::End);
        writer.append(&[0; BLOCK][..padding(self.size)])?;
        writer.pipeline.check()?;
        if let Some(entry) = writer.entries.last_mut() {
            entry.size = self.size;
            if let Some(number) = self.header {
                let header = header::encode(&entry.name, self.size);
                writer.patches.push((number, frame::stored(&header)));
            }
        }
        writer.unfinished = None;
        Ok(self.size)
    }
}

impl Write for EntryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = self.space()?;
        let size = space.len().min(bytes.len());
        space[..size].copy_from_slice(&bytes[..size]);
        self.filled(size);
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many frames and how many outputs the buffer has room for.
fn shares(options: &WriteOptions, workers: usize) -> Result<(usize, usize), WriteError> {
    // One in the hands of every worker, and two on their way to the file.
    let outputs = workers + 2;
    let least = workers + 2;
    let fixed = STAGING as u64 + (workers * Encoder::memory(options.level)) as u64;
    let frame = options.frame_size as u64;
    let needed = fixed + (outputs + least) as u64 * frame;
    if options.buffer < needed {
        return Err(WriteError::Buffer {
            frame_size: options.frame_size,
            workers,
            needed,
            buffer: options.buffer,
        });
    }
    let frames = (options.buffer - fixed) / frame - outputs as u64;
    Ok((usize::try_from(frames).unwrap_or(usize::MAX), outputs))
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

fn start(
    pipeline: &Arc<Pipeline>,
    sink: Sink,
    level: Level,
    workers: usize,
) -> Result<Threads, WriteError> {
    let mut others = Vec::with_capacity(workers);
    for _ in 0..workers {
        let encoder = Encoder::new(level)?;
        others.push((
            "compressing",
            spawn("archive-compress", pipeline, |pipeline| {
                compress(pipeline, encoder)
            })?,
        ));
    }
    Ok(Threads {
        others,
        hashing: spawn("archive-hash", pipeline, hash)?,
        writing: spawn("archive-write", pipeline, |pipeline| write(pipeline, sink))?,
    })
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    pipeline: &Arc<Pipeline>,
    body: impl FnOnce(&Pipeline) -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    let pipeline = Arc::clone(pipeline);
    // The kernel keeps 15 bytes of a thread's name.
    std::thread::Builder::new()
        .name(name[..name.len().min(15)].to_owned())
        .stack_size(256 << 10)
        .spawn(move || {
            let _alarm = Alarm {
                pipeline: &pipeline,
                thread: name,
            };
            let _member = pipeline.crew.join();
            body(&pipeline)
        })
        .map_err(|source| WriteError::Thread {
            source: Arc::new(source),
        })
}

fn join(threads: Threads) -> Result<(Vec<String>, Option<Sink>), WriteError> {
    let mut panicked = None;
    for (thread, handle) in threads.others {
        if handle.join().is_err() {
            panicked = Some(thread);
        }
    }
    let digests = threads.hashing.join();
    let sink = threads.writing.join();
    match (panicked, digests, sink) {
        (None, Ok(digests), Ok(sink)) => Ok((digests, sink)),
        (Some(thread), ..) => Err(WriteError::Panic { thread }),
        (_, Err(_), _) => Err(WriteError::Panic { thread: "hashing" }),
        (_, _, Err(_)) => Err(WriteError::Panic { thread: "writing" }),
    }
}

fn compress(pipeline: &Pipeline, mut encoder: Encoder) {
    let mut output = None;
    while let Some(frame) = pipeline.job(&mut output) {
        let content = frame.content();
        let encoded = match output.as_deref_mut() {
            Some(buffer) => encoder.encode(content, buffer),
            None => return,
        };
        let number = frame.number;
        let result = match encoded {
            Ok(Encoded::Compressed(size)) => output.take().map(|buffer| Output::Compressed {
                buffer,
                size,
                content: content.len(),
            }),
            Ok(Encoded::Stored(pieces)) => Some(Output::Stored {
                checksum: frame::checksum(content),
                pieces,
                frame: Arc::clone(&frame),
            }),
            Err(error) => return pipeline.fail(error),
        };
        if let Some(result) = result {
            pipeline.deliver(number, result);
        }
    }
}

fn hash(pipeline: &Pipeline) -> Vec<String> {
    let mut digests = Vec::new();
    let mut digest = Sha256::new();
    while let Some(frame) = pipeline.hashing() {
        for mark in &frame.marks {
            match mark {
                Mark::Content(range) => digest.update(&frame.content()[range.clone()]),
                Mark::End => digests.push(super::hex(&digest.finalize_reset())),
            }
        }
    }
    digests
}

fn write(pipeline: &Pipeline, mut sink: Sink) -> Option<Sink> {
    let mut number = 0;
    while let Some(output) = pipeline.output(number) {
        if let Err(error) = sink.frame(output) {
            pipeline.fail(error);
            return None;
        }
        number += 1;
    }
    Some(sink)
}
