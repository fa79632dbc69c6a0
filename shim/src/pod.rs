//! The containers of one shim.
//!
//! The table's lock is held for look-ups and entries alone, never over work.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{
    container::{Container, ContainerError, CreateRequest, Shared},
    process::Process,
    status::Class,
};

/// Why the table refused.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No such container.
    #[error("container {0} is not in this shim")]
    Unknown(String),
    /// It is there already.
    #[error("container {0} is in this shim already")]
    Exists(String),
    /// The shim is about to end.
    #[error("the shim is shutting down; start a new one for container {0}")]
    Closing(String),
    /// The container refused.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl PodError {
    /// What kind of failure it is for the caller.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Unknown(_) => Class::NotFound,
            Self::Exists(_) => Class::AlreadyExists,
            Self::Closing(_) => Class::Unavailable,
            Self::Container(error) => error.class(),
        }
    }
}

/// The containers of one shim.
#[derive(Debug)]
pub struct Pod {
    shared: Shared,
    table: Mutex<Table>,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    containers: HashMap<String, Arc<Container>>,
    creating: HashSet<String>,
    /// Asked to close while something was being made, which may come to nothing.
    to_close: bool,
    closing: bool,
}

impl Pod {
    /// An empty pod.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            table: Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    /// What its containers share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The container with an id.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, PodError> {
        self.lock()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| PodError::Unknown(id.into()))
    }

    /// Makes a container.
    pub async fn create(&self, request: CreateRequest) -> Result<Arc<Container>, PodError> {
        let id = request.id.clone();
        {
            let mut table = self.lock();
            if table.closing {
                return Err(PodError::Closing(id));
            }
            if table.containers.contains_key(&id) || !table.creating.insert(id.clone()) {
                return Err(PodError::Exists(id));
            }
        }
        let _reserved = Reserved { pod: self, id: &id };
        let container = Container::create(&self.shared, request).await?;
        let mut table = self.lock();
        table.to_close = false;
        table.containers.insert(id.clone(), Arc::clone(&container));
        drop(table);
        Ok(container)
    }

    /// Deletes a container and forgets it.
    pub async fn delete(&self, id: &str) -> Result<Arc<Process>, PodError> {
        let container = self.get(id)?;
        let init = container.delete().await?;
        self.lock().containers.remove(id);
        Ok(init)
    }

    /// Closes the pod when it is empty; nothing can be made in it then. Says whether it did. A
    /// container that is being made may never be there: nobody asks again then, so that the pod
    /// closes by itself.
    pub fn close(&self) -> bool {
        let mut table = self.lock();
        if !table.containers.is_empty() {
            return false;
        }
        if !table.creating.is_empty() {
            table.to_close = true;
            return false;
        }
        table.closing = true;
        self.closed.cancel();
        true
    }

    /// Completes once the pod is closed.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that is being created; freed also when the creation panics.
struct Reserved<'a> {
    pod: &'a Pod,
    id: &'a str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let to_close = {
            let mut table = self.pod.lock();
            table.creating.remove(self.id);
            table.to_close
        };
        if to_close {
            self.pod.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::Events, reaper::Reaper};

    fn pod() -> Pod {
        let (events, _) = Events::new("n");
        Pod::new(Shared {
            namespace: "n".into(),
            reaper: Reaper::new(),
            events,
        })
    }

    #[tokio::test]
    async fn a_closed_pod_takes_no_container() {
        let pod = pod();
        assert!(pod.close());
        pod.closed().await;
        let request = CreateRequest {
            id: "c".into(),
            ..CreateRequest::default()
        };
        let error = pod.create(request).await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
    }

    #[tokio::test]
    async fn a_pod_that_was_to_close_does_so_when_a_creation_comes_to_nothing() {
        let pod = pod();
        pod.lock().creating.insert("c".into());
        let reserved = Reserved { pod: &pod, id: "c" };
        assert!(!pod.close());
        assert!(!pod.closed.is_cancelled());
        drop(reserved);
        assert!(pod.closed.is_cancelled());
    }

    #[tokio::test]
    async fn a_failed_creation_leaves_no_trace() {
        let pod = pod();
        let request = CreateRequest {
            id: "c".into(),
            bundle: "/nonexistent".into(),
            ..CreateRequest::default()
        };
        assert!(pod.create(request).await.is_err());
        assert_eq!(pod.get("c").unwrap_err().class(), Class::NotFound);
        assert!(pod.close());
    }
}
