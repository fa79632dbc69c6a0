//! The chunks of an age file, sealed and opened in any order.
//!
//! What makes this safe is that no nonce is used twice. A nonce is the number of a chunk, and
//! [`Sealer::slot`] gives each number once, as a [`Slot`] that can neither be copied nor made
//! otherwise and that [`Sealer::seal`] takes away.

use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _};

use crate::{
    NONCE,
    header::{FileKey, Header, HeaderError, OpenError, Stanza, derive},
    key::{Identity, Recipient},
};

/// Bytes of content in every chunk but the last.
pub const CHUNK: usize = 64 << 10;
/// Bytes that a chunk grows by.
pub const TAG: usize = 16;
/// Bytes of a full chunk in the file.
pub const SEALED: usize = CHUNK + TAG;

/// The right to seal a chunk, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a file without this chunk has a hole"]
pub struct Slot {
    number: u64,
    payload: [u8; NONCE],
}

impl Slot {
    /// The chunk's number, from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Seals the chunks of one file.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    payload: [u8; NONCE],
    next: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let next = &self.next;
        f.debug_struct("Sealer")
            .field("next", next)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Begins a file for `to`, with `more` stanzas in its header. Returns what comes before the
    /// first chunk, too.
    ///
    /// # Errors
    /// No recipient, or more than a header holds; no random numbers.
    pub fn begin(to: &[Recipient], more: &[Stanza]) -> Result<(Vec<u8>, Self), HeaderError> {
        let (key, header) = Header::make(to, more)?;
        let mut payload = [0; NONCE];
        getrandom::fill(&mut payload)?;
        let mut head = header.into_bytes();
        head.extend_from_slice(&payload);
        let cipher = cipher(&key, &payload);
        let next = 0;
        Ok((
            head,
            Self {
                cipher,
                payload,
                next,
            },
        ))
    }

    /// The next chunk's slot.
    pub fn slot(&mut self) -> Slot {
        let number = self.next;
        self.next += 1;
        Slot {
            number,
            payload: self.payload,
        }
    }

    /// Seals a chunk in place and puts its tag behind it. Every chunk but the last has
    /// [`CHUNK`] bytes.
    ///
    /// # Panics
    /// A slot of another file, a chunk that is too long, or one too short that is not the last:
    /// mistakes that would give the content away, or that nobody could read.
    pub fn seal(&self, slot: Slot, last: bool, chunk: &mut Vec<u8>) {
        assert_eq!(slot.payload, self.payload, "a slot of another file");
        assert!(
            chunk.len() == CHUNK || (last && chunk.len() < CHUNK),
            "chunk {} has {} bytes",
            slot.number,
            chunk.len()
        );
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &nonce(slot.number, last).into(),
                &[],
                chunk.as_mut_slice().into(),
            )
            .expect("64 KiB are not too long");
        chunk.extend_from_slice(&tag);
    }
}

/// Why a chunk does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFault {
    /// Not what was sealed here.
    #[error(
        "encrypted chunk {number} is damaged, belongs to another place or file, or was appended"
    )]
    Forged {
        /// Its number, from 0.
        number: u64,
    },
    /// The file ends too early.
    #[error(
        "the file was cut short: after encrypted chunk {number}, which ends it, more must come"
    )]
    CutShort {
        /// The chunk that ends the file.
        number: u64,
    },
    /// The file ends too late.
    #[error("something was appended: encrypted chunk {number} was the last one")]
    Appended {
        /// The last chunk that was sealed.
        number: u64,
    },
}

/// Opens the chunks of one file.
pub struct Opener {
    cipher: ChaCha20Poly1305,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl Opener {
    /// For the file with this header and the nonce that follows it.
    ///
    /// # Errors
    /// None of the identities is a recipient's; the header is not as it was written.
    pub fn new(
        header: &Header,
        nonce: &[u8; NONCE],
        identities: &[Identity],
    ) -> Result<Self, OpenError> {
        let cipher = cipher(&header.open(identities)?, nonce);
        Ok(Self { cipher })
    }

    /// Opens chunk `number` in place and takes its tag away; `last` says that the file ends with
    /// it.
    ///
    /// # Errors
    /// It is not what was sealed in this place; then its bytes are as they were.
    pub fn open(&self, number: u64, last: bool, chunk: &mut Vec<u8>) -> Result<(), ChunkFault> {
        if self.try_open(number, last, chunk) {
            return Ok(());
        }
        // Says what happened, where that can be told.
        let mut other = chunk.clone();
        Err(match self.try_open(number, !last, &mut other) {
            true if last => ChunkFault::CutShort { number },
            true => ChunkFault::Appended { number },
            false => ChunkFault::Forged { number },
        })
    }

    fn try_open(&self, number: u64, last: bool, chunk: &mut Vec<u8>) -> bool {
        let Some((content, tag)) = chunk.split_last_chunk_mut::<TAG>() else {
            return false;
        };
        let size = content.len();
        let opened = self.cipher.decrypt_inout_detached(
            &nonce(number, last).into(),
            &[],
            content.into(),
            (&*tag).into(),
        );
        if opened.is_ok() {
            chunk.truncate(size);
        }
        opened.is_ok()
    }
}

fn cipher(key: &FileKey, payload: &[u8; NONCE]) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new((&*derive(key.as_slice(), payload, b"payload")).into())
}

fn nonce(number: u64, last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(last);
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(identity: &Identity) -> (Sealer, Opener) {
        let (head, sealer) = Sealer::begin(&[identity.recipient().clone()], &[]).unwrap();
        let header = Header::parse(&head).unwrap();
        let nonce = head[header.size()..].try_into().unwrap();
        let opener = Opener::new(&header, nonce, std::slice::from_ref(identity)).unwrap();
        (sealer, opener)
    }

    #[test]
    fn chunks_open_where_they_were_sealed_and_nowhere_else() {
        let identity = Identity::generate().unwrap();
        let (mut sealer, opener) = pair(&identity);
        let (first, second, third) = (sealer.slot(), sealer.slot(), sealer.slot());
        let content = |byte: u8| vec![byte; CHUNK];
        let (mut one, mut two, mut end) = (content(1), content(2), b"end".to_vec());
        // In any order.
        sealer.seal(third, true, &mut end);
        sealer.seal(first, false, &mut one);
        sealer.seal(second, false, &mut two);
        assert_eq!((one.len(), end.len()), (SEALED, 3 + TAG));
        for (number, last, sealed, expected) in [
            (0, false, &one, content(1)),
            (1, false, &two, content(2)),
            (2, true, &end, b"end".to_vec()),
        ] {
            let open = |number, last| {
                let mut chunk = sealed.clone();
                let opened = opener.open(number, last, &mut chunk);
                assert!(opened.is_ok() || chunk == *sealed, "not touched");
                opened.map(|()| chunk)
            };
            assert_eq!(open(number, last), Ok(expected));
            let elsewhere = open(number + 1, last);
            assert_eq!(elsewhere, Err(ChunkFault::Forged { number: number + 1 }));
        }
        let open = |number, last, mut chunk: Vec<u8>| opener.open(number, last, &mut chunk);
        assert_eq!(
            open(1, true, two.clone()),
            Err(ChunkFault::CutShort { number: 1 })
        );
        assert_eq!(
            open(2, false, end.clone()),
            Err(ChunkFault::Appended { number: 2 })
        );
        assert_eq!(
            open(0, true, Vec::new()),
            Err(ChunkFault::Forged { number: 0 })
        );
        for at in [0, 77, CHUNK - 1, CHUNK, SEALED - 1] {
            let mut bad = one.clone();
            bad[at] ^= 4;
            assert_eq!(open(0, false, bad), Err(ChunkFault::Forged { number: 0 }));
        }
        let (_, other) = pair(&identity);
        let elsewhere = other.open(0, false, &mut one.clone());
        assert_eq!(elsewhere, Err(ChunkFault::Forged { number: 0 }));
    }

    #[test]
    fn every_slot_is_given_once() {
        let (mut sealer, _) = pair(&Identity::generate().unwrap());
        let numbers: Vec<u64> = (0..5).map(|_| sealer.slot().number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
    }

    #[test]
    #[should_panic(expected = "a slot of another file")]
    fn a_slot_counts_for_its_own_file_alone() {
        let identity = Identity::generate().unwrap();
        let (mut one, _) = pair(&identity);
        let (two, _) = pair(&identity);
        two.seal(one.slot(), true, &mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "chunk 0 has 5 bytes")]
    fn a_short_chunk_is_the_last_one() {
        let (mut sealer, _) = pair(&Identity::generate().unwrap());
        let slot = sealer.slot();
        sealer.seal(slot, false, &mut vec![0; 5]);
    }
}
