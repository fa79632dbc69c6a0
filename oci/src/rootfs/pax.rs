//! Pax records: `LENGTH KEY=VALUE\n`, where LENGTH counts itself, in decimal.
//!
//! They stand as the content of a header of type `x`, for the member that follows, or `g`.
//! Values are bytes: the length tells where they end, so a newline in one means nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::member::Stamp;

/// Key of the global record that names a deletion.
pub(super) const DELETED_KEY: &[u8] = b"KYBERNATE.deleted";
/// Prefix of the keys that hold extended attributes.
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// Records being written.
#[derive(Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend(key);
        self.0.push(b'=');
        self.0.extend(value);
        self.0.push(b'\n');
    }

    /// Adds an extended attribute. Its name is escaped as GNU tar does, since "=" ends a key.
    pub(super) fn add_xattr(&mut self, name: &OsStr, value: &[u8]) {
        let mut key = XATTR_KEY.to_vec();
        for &byte in name.as_bytes() {
            match byte {
                b'=' => key.extend(b"%3D"),
                b'%' => key.extend(b"%25"),
                _ => key.push(byte),
            }
        }
        self.add(&key, value);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What extension headers said about the member that follows.
#[derive(Default)]
pub(super) struct Extension {
    pub(super) name: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Stamp>,
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
    /// Whether it is a sparse file in one of GNU's pax forms.
    pub(super) sparse: bool,
}

impl Extension {
    /// Takes records in, or says what is wrong with the header that holds them. Of several
    /// records with one key the last counts; attributes are all kept, in order.
    pub(super) fn take(&mut self, data: &[u8]) -> Result<(), &'static str> {
        for record in records(data) {
            let (key, value) = record?;
            let text = std::str::from_utf8(value).unwrap_or_default();
            let number = || {
                text.parse()
                    .map_err(|_| "extends a number by something else")
            };
            if let Some(name) = key.strip_prefix(XATTR_KEY) {
                let name = OsString::from_vec(unescaped(name));
                self.xattrs.push((name, value.to_vec()));
                continue;
            }
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => self.mtime = Some(Stamp::from_pax(text).ok_or("has no valid time")?),
                key => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

/// The records of a pax header: keys and values. Ends after the first broken one.
pub(super) fn records(
    mut data: &[u8],
) -> impl Iterator<Item = Result<(&[u8], &[u8]), &'static str>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let Some((key, value, rest)) = split_record(data) else {
            data = &[];
            return Some(Err("holds a broken pax record"));
        };
        data = rest;
        Some(Ok((key, value)))
    })
}

/// Key and value of the first record, and what follows it.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..blank]).ok()?.parse().ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Undoes `%3D` and `%25` in an attribute's name.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut left = name;
    while let [first, rest @ ..] = left {
        let (byte, rest) = match left {
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            _ => (*first, rest),
        };
        plain.push(byte);
        left = rest;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_survive(
            name in "[a-z=%\n]{1,30}",
            value in proptest::collection::vec(any::<u8>(), 0..1200),
            size: u64,
        ) {
            let mut records = Records::default();
            records.add(b"size", size.to_string().as_bytes());
            records.add_xattr(OsStr::new(&name), &value);
            let mut found = Extension::default();
            found.take(records.bytes()).unwrap();
            prop_assert_eq!(found.size, Some(size));
            prop_assert_eq!(found.xattrs, [(OsString::from(name), value)]);
        }

        #[test]
        fn nonsense_is_an_error_or_nothing(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            // Whatever comes out was in there.
            for (key, value) in records(&data).flatten() {
                prop_assert!(key.len() + value.len() < data.len());
            }
        }
    }

    #[test]
    fn broken_records_are_told() {
        for bad in [
            "5 a=b\n", "99 a=b\n", "6 a=bc", "6  ab\n", "x a=b\n", "-6 a=b\n", "3 \n",
        ] {
            assert!(
                Extension::default().take(bad.as_bytes()).is_err(),
                "{bad:?}"
            );
        }
        assert!(Extension::default().take(b"6 a=b\n").is_ok());
    }
}
