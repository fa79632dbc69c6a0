//! The digest of an entry, made on several threads.
//!
//! ```text
//! content  │ piece │ piece │ piece │    as frames cut it
//! leaves   sha256   sha256   sha256     each on the thread that has the frame
//! entry    sha256 of leaf ‖ leaf ‖ leaf, or the leaf itself where there is only one
//! ```
//! One sha256 over all content would be the slowest step of every checkpoint and restore.

use sha2::{Digest as _, Sha256};

/// sha256 of one piece.
pub(super) type Leaf = [u8; 32];

/// sha256 of a piece that lies in one frame.
pub(super) fn leaf(piece: &[u8]) -> Leaf {
    Sha256::digest(piece).into()
}

/// Puts leaves together, in order.
#[derive(Debug, Default)]
pub(super) struct Digest {
    first: Option<Leaf>,
    /// Over all leaves, once there are two.
    all: Option<Sha256>,
}

impl Digest {
    pub(super) fn push(&mut self, leaf: Leaf) {
        match (&self.first, &mut self.all) {
            (None, _) => self.first = Some(leaf),
            (Some(_), Some(all)) => all.update(leaf),
            (Some(first), None) => {
                self.all = Some(Sha256::new().chain_update(first).chain_update(leaf));
            }
        }
    }

    /// The digest in lower-case hex; ready for the next entry.
    pub(super) fn finish(&mut self) -> String {
        let Self { first, all } = std::mem::take(self);
        match (first, all) {
            (_, Some(all)) => super::hex(&all.finalize()),
            (Some(first), None) => super::hex(&first),
            (None, None) => super::hex(&leaf(&[])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_is_its_own_digest_and_more_are_a_tree() {
        let mut digest = Digest::default();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.finish(), empty);
        digest.push(leaf(b"abc"));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.finish(), abc);
        let pieces = [&b"abc"[..], b"d", b"ef"];
        for piece in pieces {
            digest.push(leaf(piece));
        }
        let leaves = pieces.map(leaf).concat();
        assert_eq!(digest.finish(), super::super::hex(&leaf(&leaves)));
        assert_eq!(digest.finish(), empty);
    }
}
