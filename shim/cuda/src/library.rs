//! Finds the driver's libraries: where the caller says, in the dynamic linker's path, or in the
//! roots into which driver containers and node images put them.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The driver.
pub const CUDA: &str = "libcuda.so.1";
/// NVIDIA's management library.
pub const NVML: &str = "libnvidia-ml.so.1";

/// Directories of libraries below a driver root, in the order of distributions by number of nodes.
const DIRECTORIES: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib/x86_64-linux-gnu",
    "usr/lib/wsl/lib",
];

/// Why a library is not there.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is nowhere, or does not load.
    #[error(
        "cannot load {name}: {tried}; install the driver's user-space libraries on this node, or name their place in gpu.libcuda or gpu.driver_roots of Kybernate's settings"
    )]
    NotFound {
        /// Which.
        name: &'static str,
        /// Each place with what was wrong there.
        tried: String,
    },
    /// It is too old.
    #[error(
        "{library} has no {symbol}; checkpoints of GPU state need driver 570 or newer (CUDA 12.8)"
    )]
    Symbol {
        /// The library.
        library: String,
        /// What it lacks.
        symbol: &'static str,
    },
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// The library itself; nothing else is tried then.
    pub exact: Option<PathBuf>,
    /// Roots of driver installations, tried after the dynamic linker's own path.
    pub roots: Vec<PathBuf>,
}

impl Search {
    /// Loads a library and says where it was.
    pub fn load(&self, name: &'static str) -> Result<(Library, String), LibraryError> {
        let mut tried = Vec::new();
        for path in self.candidates(name) {
            match open(&path) {
                Ok(library) => return Ok((library, path.display().to_string())),
                Err(error) => tried.push(error),
            }
        }
        Err(LibraryError::NotFound {
            name,
            tried: tried.join("; "),
        })
    }

    /// The places, in order. A bare name is for the dynamic linker.
    fn candidates(&self, name: &str) -> Vec<PathBuf> {
        if let Some(exact) = &self.exact {
            // NVML lies beside the driver.
            return vec![match exact.parent() {
                Some(directory) if name != CUDA => directory.join(name),
                _ => exact.clone(),
            }];
        }
        let below = |root: &PathBuf| {
            let root = root.clone();
            DIRECTORIES
                .iter()
                .map(move |directory| root.join(directory).join(name))
        };
        let found = self
            .roots
            .iter()
            .flat_map(below)
            .filter(|path| path.exists());
        std::iter::once(Path::new(name).into())
            .chain(found)
            .collect()
    }
}

#[allow(unsafe_code)]
fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers. It is the driver of this node, which every
    // CUDA program loads in the same way.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_place_is_the_only_one_and_nvml_lies_beside_it() {
        let search = Search {
            exact: Some("/opt/gpu/libcuda.so.1".into()),
            roots: vec!["/".into()],
        };
        assert_eq!(
            search.candidates(CUDA),
            [Path::new("/opt/gpu/libcuda.so.1")]
        );
        assert_eq!(
            search.candidates(NVML),
            [Path::new("/opt/gpu/libnvidia-ml.so.1")]
        );
    }

    #[test]
    fn driver_roots_come_after_the_linkers_path() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("usr/lib64");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(CUDA), "no library").unwrap();
        let search = Search {
            exact: None,
            roots: vec![root.path().into(), "/nowhere".into()],
        };
        assert_eq!(
            search.candidates(CUDA),
            [Path::new(CUDA), &directory.join(CUDA)]
        );
    }

    #[test]
    fn what_does_not_load_says_what_was_tried() {
        let search = Search {
            exact: Some("/nowhere/libcuda.so.1".into()),
            roots: Vec::new(),
        };
        let text = search.load(CUDA).unwrap_err().to_string();
        assert!(
            text.contains("/nowhere/libcuda.so.1") && text.contains("gpu.libcuda"),
            "{text}"
        );
    }
}
