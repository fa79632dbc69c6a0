//! Runs cases on every distribution and handler, several at a time in one lab each.
//!
//! A case is an async function of a [`Case`]. It runs as `forky/kybernate/<name>` and so on;
//! `cargo test … -- trixie/runc` runs a part. A case that cannot run returns [`skip`], which
//! prints `SKIPPED`; with `KYBERNATE_REQUIRE_ALL=1` or `CI=true` that fails the run. What no
//! installation could change, [`beyond_this_machine`], is printed and does not fail.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{
    runtime::Runtime,
    sync::{Mutex as AsyncMutex, RwLock},
};

use crate::{
    cri::{PodBuilder, pod::Made},
    image::catalog,
    lab::{Distro, Handler, Lab, LabOptions, missing, roots},
};

type Body = Arc<dyn Fn(Case) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync>;

/// What a case is given.
#[derive(Debug, Clone)]
pub struct Case {
    /// The lab it runs in, together with other cases.
    pub lab: Arc<Lab>,
    /// The handler it is about.
    pub handler: Handler,
    made: Made,
}

impl Case {
    /// A pod of the case's handler; removed after the case, and that must work.
    pub fn pod(&self) -> PodBuilder {
        PodBuilder::tracked(&self.lab, self.handler, self.made.clone())
    }

    async fn clean_up(&self) -> Result<()> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(|e| e.into_inner()));
        let mut first = Ok(());
        for id in made {
            let mut removed = crate::cri::pod::remove(&self.lab, &id).await;
            if removed.is_err() && self.handler == Handler::Runc {
                // A stock shim that has lost a container's exit leaves containerd with one to kill
                // whose shim has gone; it knows better the second time.
                removed = crate::cri::pod::remove(&self.lab, &id).await;
            }
            first = first.and(removed);
        }
        first
    }
}

/// Why a case cannot run here.
#[derive(Debug)]
struct Skip {
    reason: String,
    by_nature: bool,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.reason)
    }
}

impl std::error::Error for Skip {}

/// The result of a case that lacks something that can be had; says what. Where every case has to
/// run, it fails.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(anyhow!(Skip {
        reason: reason.into(),
        by_nature: false,
    }))
}

/// The result of a case that this kernel, these privileges or this release of a program can
/// never run, whatever is installed; says why. It is printed and never fails.
pub fn beyond_this_machine<T>(reason: impl Into<String>) -> Result<T> {
    Err(anyhow!(Skip {
        reason: reason.into(),
        by_nature: true,
    }))
}

#[derive(Clone)]
struct Definition {
    name: &'static str,
    body: Body,
    handlers: &'static [Handler],
    distros: &'static [Distro],
    when: fn(Distro, Handler) -> bool,
    alone: bool,
    limit: Duration,
}

/// The cases of one test program.
#[derive(Clone)]
pub struct Suite {
    name: &'static str,
    cases: Vec<Definition>,
    images: Vec<&'static str>,
    debug: bool,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Suite {
    /// A suite without cases; the name is for the logs that it keeps.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            cases: Vec::new(),
            images: vec![catalog::PAUSE, catalog::TOOLS],
            debug: false,
        }
    }

    /// Has containerd and the shims log all they can.
    pub fn debug_logs(mut self) -> Self {
        self.debug = true;
        self
    }

    /// Imports one more image into the suite's labs.
    pub fn image(mut self, image: &'static str) -> Self {
        self.images.push(image);
        self
    }

    /// Adds a case that runs on all handlers and both distributions, beside others, for at most
    /// 120 s. The methods below change the case added last.
    pub fn case<F, Fut>(mut self, name: &'static str, body: F) -> Self
    where
        F: Fn(Case) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.cases.push(Definition {
            name,
            body: Arc::new(move |case| Box::pin(body(case))),
            handlers: &Handler::ALL,
            distros: &Distro::ALL,
            when: |_, _| true,
            alone: false,
            limit: Duration::from_secs(120),
        });
        self
    }

    /// Only on these handlers.
    pub fn handlers(self, handlers: &'static [Handler]) -> Self {
        self.last(|case| case.handlers = handlers)
    }

    /// Only on these distributions.
    pub fn distros(self, distros: &'static [Distro]) -> Self {
        self.last(|case| case.distros = distros)
    }

    /// Only on the combinations of both for which the condition holds.
    pub fn when(self, condition: fn(Distro, Handler) -> bool) -> Self {
        self.last(|case| case.when = condition)
    }

    /// While no other case runs in the lab: for cases that kill containerd, or measure.
    pub fn alone(self) -> Self {
        self.last(|case| case.alone = true)
    }

    /// For at most so long.
    pub fn limit(self, limit: Duration) -> Self {
        self.last(|case| case.limit = limit)
    }

    fn last(mut self, change: impl FnOnce(&mut Definition)) -> Self {
        if let Some(case) = self.cases.last_mut() {
            change(case);
        }
        self
    }

    /// Runs the suite with the arguments of the process, ends its labs and looks for leaks.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        // Cases wait more than they compute.
        arguments.test_threads.get_or_insert(4);
        let runtime = match Runtime::new() {
            Ok(runtime) => Arc::new(runtime),
            Err(e) => {
                eprintln!("cannot start the async runtime: {e}");
                return ExitCode::FAILURE;
            }
        };
        let stage = Arc::new(Stage::new(self.name, self.images, self.debug));
        let mut trials = Vec::new();
        // Neighbours are in different labs, so that cases that run alone there run beside others.
        for handler in Handler::REGISTERED {
            for case in &self.cases {
                for distro in Distro::ALL {
                    let wanted = case.handlers.contains(&handler) && case.distros.contains(&distro);
                    if wanted && (case.when)(distro, handler) {
                        trials.push(trial(case, distro, handler, &stage, &runtime));
                    }
                }
            }
        }
        let conclusion = libtest_mimic::run(&arguments, trials);
        let clean = stage.end(&runtime);
        if conclusion.has_failed() || !clean {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

fn trial(
    case: &Definition,
    distro: Distro,
    handler: Handler,
    stage: &Arc<Stage>,
    runtime: &Arc<Runtime>,
) -> Trial {
    let (case, stage, runtime) = (case.clone(), stage.clone(), runtime.clone());
    let name = format!("{distro}/{handler}/{}", case.name);
    let title = name.clone();
    Trial::test(name, move || {
        match runtime.block_on(stage.play(&case, distro, handler)) {
            Ok(()) => Ok(()),
            Err(e) => match e.downcast_ref::<Skip>() {
                Some(skip) if skip.by_nature => {
                    eprintln!("SKIPPED {title}: {}", skip.reason);
                    Ok(())
                }
                Some(skip) => report_skip(&title, &skip.reason),
                None => {
                    stage.failed.store(true, Ordering::Relaxed);
                    Err(Failed::from(format!("{e:#}")))
                }
            },
        }
    })
}

/// Says loudly that a test did not run; that is a failure where every test has to run.
pub fn report_skip(title: &str, reason: &str) -> Result<(), Failed> {
    eprintln!("SKIPPED {title}: {reason}");
    if must_run() {
        return Err(format!("a skipped case fails this run: {reason}").into());
    }
    Ok(())
}

/// Whether every case has to run.
fn must_run() -> bool {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    set("KYBERNATE_REQUIRE_ALL", "1") || set("CI", "true")
}

/// The labs of a suite: started when first used, ended after the last case.
struct Stage {
    name: &'static str,
    images: Vec<&'static str>,
    debug: bool,
    labs: AsyncMutex<HashMap<Distro, Result<Arc<Lab>, String>>>,
    quiet: HashMap<Distro, RwLock<()>>,
    failed: AtomicBool,
    ended: Mutex<()>,
}

impl Stage {
    fn new(name: &'static str, images: Vec<&'static str>, debug: bool) -> Self {
        Self {
            name,
            images,
            debug,
            labs: AsyncMutex::default(),
            quiet: Distro::ALL
                .into_iter()
                .map(|distro| (distro, RwLock::new(())))
                .collect(),
            failed: AtomicBool::new(false),
            ended: Mutex::new(()),
        }
    }

    async fn lab(&self, distro: Distro) -> Result<Arc<Lab>> {
        if let Some(reason) = missing() {
            return skip(reason);
        }
        let mut labs = self.labs.lock().await;
        if let Some(started) = labs.get(&distro) {
            return started.clone().map_err(|e| anyhow!(e));
        }
        let mut options = LabOptions {
            images: self.images.clone(),
            keep_log: Some(
                roots::lab_dir()?
                    .join("logs")
                    .join(format!("{}-{distro}.log", self.name)),
            ),
            ..LabOptions::default()
        };
        if self.debug {
            options.log_level = "debug".into();
        }
        let started = Lab::start(distro, options).await;
        let kept = match &started {
            Ok(lab) => Ok(lab.clone()),
            Err(e) => Err(format!("the lab did not start: {e:#}")),
        };
        labs.insert(distro, kept);
        started
    }

    async fn play(&self, case: &Definition, distro: Distro, handler: Handler) -> Result<()> {
        let lab = self.lab(distro).await?;
        if !lab.has(handler) {
            return skip(format!("{} is not built: run `make build`", handler.shim()));
        }
        let lock = &self.quiet[&distro];
        let (_shared, _alone) = if case.alone {
            (None, Some(lock.write().await))
        } else {
            (Some(lock.read().await), None)
        };
        let cx = Case {
            lab,
            handler,
            made: Made::default(),
        };
        let played = tokio::time::timeout(case.limit, (case.body)(cx.clone())).await;
        let played =
            played.unwrap_or_else(|_| Err(anyhow!("case not done within {:?}", case.limit)));
        let cleaned = tokio::time::timeout(Duration::from_secs(60), cx.clean_up()).await;
        let cleaned = cleaned.unwrap_or_else(|_| Err(anyhow!("pods not removed within a minute")));
        played.and(cleaned.map_err(|e| e.context("clean-up after the case")))
    }

    /// Ends the labs; false when one of them has left something behind.
    fn end(&self, runtime: &Runtime) -> bool {
        let _once = self.ended.lock();
        let labs = runtime.block_on(async { std::mem::take(&mut *self.labs.lock().await) });
        let mut clean = true;
        for lab in labs.into_values().flatten() {
            if let Err(e) = lab.close() {
                eprintln!("{e:#}");
                clean = false;
            }
        }
        if self.failed.load(Ordering::Relaxed) {
            eprintln!(
                "containerd's logs are in {}/logs",
                roots::lab_dir().map_or_else(|_| ".lab".into(), |d| d.display().to_string())
            );
        }
        clean
    }
}
