//! What `stdout` may name: a FIFO by path, or a URI.
//!
//! ```text
//! /run/containerd/fifo/1/x-stdout           a FIFO
//! fifo:///run/...                           the same
//! file:///var/log/x.log                     a file, stderr goes there too
//! binary:///usr/bin/logger?--tag=x&-v       a program; its arguments are the query's keys and values
//! ```

use std::path::PathBuf;

use super::StdioError;

/// A parsed `stdout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Empty: no output wanted.
    None,
    /// A FIFO.
    Fifo(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A program that reads stdout from fd 3 and stderr from fd 4.
    Program {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

impl Output {
    /// Parses what containerd sent.
    pub fn parse(text: &str) -> Result<Self, StdioError> {
        let wrong = || StdioError::Uri { uri: text.into() };
        if text.is_empty() {
            return Ok(Self::None);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Fifo(text.into()));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path)
            .filter(|path| path.starts_with('/'))
            .ok_or_else(wrong)?;
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            "binary" => {
                let args = arguments(query).ok_or_else(wrong)?;
                Ok(Self::Program {
                    program: path.into(),
                    args,
                })
            }
            _ => Err(wrong()),
        }
    }
}

/// Keys in alphabetic order, each followed by its value when that is not empty. Of a key
/// that comes twice the first value counts.
fn arguments(query: &str) -> Option<Vec<String>> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (
            decode(&key.replace('+', " "))?,
            decode(&value.replace('+', " "))?,
        );
        if !pairs.iter().any(|(known, _)| *known == key) {
            pairs.push((key, value));
        }
    }
    pairs.sort();
    Some(
        pairs
            .into_iter()
            .flat_map(|(k, v)| [k, v])
            .filter(|arg| !arg.is_empty())
            .collect(),
    )
}

/// Undoes percent-encoding. `None` when it is malformed or no text.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? << 4 | digit()?;
        out.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_fifo() {
        assert_eq!(Output::parse("/f/x").unwrap(), Output::Fifo("/f/x".into()));
        assert_eq!(
            Output::parse("fifo:///f/x").unwrap(),
            Output::Fifo("/f/x".into())
        );
        assert_eq!(Output::parse("").unwrap(), Output::None);
    }

    #[test]
    fn a_file_may_have_encoded_characters() {
        assert_eq!(
            Output::parse("file:///a%20b").unwrap(),
            Output::File("/a b".into())
        );
    }

    #[test]
    fn a_program_gets_the_query_as_arguments() {
        let Output::Program { program, args } =
            Output::parse("binary:///bin/l?tag=a+b&-v&tag=c&path=%2Fx").unwrap()
        else {
            panic!("not a program")
        };
        assert_eq!(program, PathBuf::from("/bin/l"));
        assert_eq!(args, ["-v", "path", "/x", "tag", "a b"]);
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for uri in [
            "npipe:///x",
            "file://host/x",
            "file:///%zz",
            "file:///%",
            "binary://x",
        ] {
            let error = Output::parse(uri).unwrap_err().to_string();
            assert!(error.contains(uri), "{error}");
        }
    }
}
