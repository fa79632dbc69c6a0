//! The one tar header that an entry can have.

use tar::{EntryType, Header};

use super::BLOCK;

/// The header of entry `name` (a directory's ends in `/`) with `size` bytes of content.
///
/// `name` has been checked, so it fits the name field.
pub(super) fn encode(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = Header::new_ustar();
    let directory = name.ends_with('/');
    let field = &mut header.as_old_mut().name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(if directory {
        EntryType::Directory
    } else {
        EntryType::Regular
    });
    header.set_mode(if directory { 0o700 } else { 0o600 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(0);
        ustar.set_device_minor(0);
    }
    header.set_cksum();
    *header.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back() {
        for size in [0, 1, 511, (8 << 30) - 1, 8 << 30, 1 << 44] {
            let bytes = encode("checkpoint/pages-1.img", size);
            let header = Header::from_byte_slice(&bytes);
            assert_eq!(header.size().unwrap(), size);
            assert_eq!(header.mode().unwrap(), 0o600);
            assert_eq!(header.path_bytes().as_ref(), b"checkpoint/pages-1.img");
            let sum: u32 = bytes
                .iter()
                .enumerate()
                .map(|(at, byte)| {
                    if (148..156).contains(&at) {
                        32
                    } else {
                        u32::from(*byte)
                    }
                })
                .sum();
            assert_eq!(header.cksum().unwrap(), sum);
        }
        let name = "n".repeat(100);
        let bytes = encode(&name, 0);
        assert_eq!(
            Header::from_byte_slice(&bytes).path_bytes().as_ref(),
            name.as_bytes()
        );
        let directory = encode("checkpoint/", 0);
        assert!(Header::from_byte_slice(&directory).entry_type().is_dir());
    }
}
