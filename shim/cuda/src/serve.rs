//! `kybernate-cuda serve`: requests from standard input, answers to standard output.

use std::{
    io::{self, BufRead, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{
    library::Search,
    process::Process,
    protocol::{Failure, FailureKind, Op, Outcome, Request, Response},
    session::Session,
};

/// Serves until the input ends. Whatever was not released by then is undone.
pub fn run(
    search: Search,
    records: &Path,
    input: impl BufRead,
    output: impl Write + Send + 'static,
) -> io::Result<()> {
    let session = Arc::new(Session::new(search, records));
    let output = Arc::new(Mutex::new(output));
    let mut under_way = Vec::new();
    let mut released = true;
    for line in input.lines() {
        let Ok(line) = line else { break };
        let request: Request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                let text = format!("{line:?} is no request: {error}");
                let kind = FailureKind::Request;
                let code = None;
                answer(&output, 0, Outcome::Error(Failure { kind, code, text }));
                continue;
            }
        };
        released = request.op == Op::Release;
        under_way.retain(|step: &JoinHandle<()>| !step.is_finished());
        session.note(&request.op);
        if asks_the_driver(&request.op) {
            let (session, output) = (Arc::clone(&session), Arc::clone(&output));
            under_way.push(thread::spawn(move || take(&session, &request, &output)));
        } else {
            take(&session, &request, &output);
        }
    }
    if !released {
        session.undo(&under_way);
    }
    Ok(())
}

/// What a revival that worked says, for whoever can't wait for its exit status.
pub const REVIVED: &str = "revived";

/// Brings processes back that an operation has left, all at the same time. Fails when one of them
/// does not run on its GPU then; kernel settings of the dead are put back in any case.
pub fn revive(search: Search, records: &Path, processes: Vec<Process>) -> io::Result<()> {
    let session = Arc::new(Session::new(search, records));
    let work: Vec<_> = processes
        .into_iter()
        .map(|process| {
            let session = Arc::clone(&session);
            thread::spawn(move || session.revive(process))
        })
        .collect();
    let mut left = Vec::new();
    for thread in work {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(text)) => left.push(text),
            Err(_) => left.push("a thread has panicked".into()),
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(left.join("; ")))
}

/// Whether it may block. The rest is done in the order in which it was asked for.
fn asks_the_driver(op: &Op) -> bool {
    !matches!(op, Op::Hold { .. } | Op::Guard { .. } | Op::Release)
}

fn take(session: &Session, request: &Request, output: &Mutex<impl Write>) {
    let outcome = match session.run(&request.op) {
        Ok(reply) => Outcome::Ok(Box::new(reply)),
        Err(failure) => Outcome::Error(failure),
    };
    answer(output, request.id, outcome);
}

/// A caller that is gone hears nothing; the end of the input tells of it.
fn answer(output: &Mutex<impl Write>, id: u64, outcome: Outcome) {
    let mut line = serde_json::to_vec(&Response { id, outcome }).expect("plain data becomes JSON");
    line.push(b'\n');
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = output.write_all(&line).and_then(|()| output.flush());
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Cursor, path::PathBuf, sync::mpsc};

    use super::*;

    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serve(records: &Path, requests: &str) -> Vec<Response> {
        let search = Search {
            exact: Some("/nowhere/libcuda.so.1".into()),
            roots: Vec::new(),
        };
        let (sender, receiver) = mpsc::channel();
        let input = Cursor::new(requests.to_owned());
        run(search, records, input, Channel(sender)).unwrap();
        receiver
            .iter()
            .map(|line| serde_json::from_slice(&line).unwrap())
            .collect()
    }

    fn setting(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("enabled");
        fs::write(&path, "always [madvise] never").unwrap();
        path
    }

    #[test]
    fn a_missing_library_and_a_bad_request_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let answers = serve(
            dir.path(),
            "{\"id\":3,\"op\":\"state\",\"pid\":1}\nnonsense\n",
        );
        let kind = |id| {
            let response = answers.iter().find(|r| r.id == id).unwrap();
            match &response.outcome {
                Outcome::Error(failure) => failure.kind,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(kind(3), FailureKind::Library);
        assert_eq!(kind(0), FailureKind::Request);
    }

    #[test]
    fn the_dead_need_no_reviving_and_their_settings_are_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = setting(&dir);
        let records = dir.path().join("levers");
        fs::create_dir(&records).unwrap();
        let record = format!(
            "{{\"path\":{path:?},\"before\":\"never\",\"holders\":[{{\"pid\":1,\"start\":1}}]}}"
        );
        fs::write(records.join("x.json"), record).unwrap();
        let search = Search {
            exact: Some("/nowhere/libcuda.so.1".into()),
            roots: Vec::new(),
        };
        let own = Process::now(std::process::id()).unwrap();
        let other = Process {
            start: own.start + 1,
            ..own
        };
        revive(search.clone(), &records, vec![other]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "never");
        let error = revive(search, &records, vec![own]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libcuda.so.1"), "{error}");
    }

    #[test]
    fn what_is_not_released_is_undone_at_the_end_of_the_input() {
        let dir = tempfile::tempdir().unwrap();
        let path = setting(&dir);
        let freezer = dir.path().join("cgroup.freeze");
        fs::write(&freezer, "1").unwrap();
        let requests = format!(
            "{{\"id\":1,\"op\":\"hold\",\"path\":{path:?},\"value\":\"always\"}}\n\
             {{\"id\":2,\"op\":\"guard\",\"path\":{freezer:?},\"value\":\"0\"}}\n\
             {{\"id\":3,\"op\":\"state\",\"pid\":1}}\n"
        );
        serve(&dir.path().join("levers"), &requests);
        assert_eq!(fs::read_to_string(&path).unwrap(), "madvise");
        assert_eq!(fs::read_to_string(&freezer).unwrap(), "0");
    }
}
