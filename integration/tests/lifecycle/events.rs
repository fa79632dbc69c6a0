//! The order of events, on which containerd's bookkeeping rests.

use anyhow::{Context, Result, ensure};
use kybernate_hooks::containerd::tasks::{PauseTaskRequest, ResumeTaskRequest};
use kybernate_integration::{
    Case, Handler, Suite,
    events::{Event, Recorder},
    tasks::{Exec, ExecOptions},
};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("events_in_order", events_in_order)
        .case("events_of_a_short_life", events_of_a_short_life)
        .case("events_of_the_sandbox", events_of_the_sandbox)
}

async fn events_in_order(cx: Case) -> Result<()> {
    let events = Recorder::subscribe(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let exec = Exec::start(
        &cx.lab,
        &app.id,
        "x",
        &["sh", "-c", "exit 3"],
        ExecOptions::default(),
    )
    .await?;
    ensure!(exec.finish().await? == 3);
    events.wait(&app.id, &Event::Exit("x".into(), 3)).await?;
    let container_id = app.id.clone();
    cx.lab
        .tasks()
        .pause(PauseTaskRequest { container_id })
        .await
        .context("Pause")?;
    let container_id = app.id.clone();
    cx.lab
        .tasks()
        .resume(ResumeTaskRequest { container_id })
        .await
        .context("Resume")?;
    app.stop(0).await?;
    app.remove().await?;
    let seen = events.wait(&app.id, &Event::Delete(app.id.clone())).await?;
    let expected = [
        Event::Create,
        Event::Start,
        Event::ExecAdded("x".into()),
        Event::ExecStarted("x".into()),
        Event::Exit("x".into(), 3),
        Event::Paused,
        Event::Resumed,
        Event::Exit(app.id.clone(), 137),
        Event::Delete(app.id.clone()),
    ];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

async fn events_of_a_short_life(cx: Case) -> Result<()> {
    let events = Recorder::subscribe(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    // The exit comes as close to the start as it can.
    for round in 0..10 {
        let app = pod
            .container(&format!("short-{round}"))
            .command(["true"])
            .start()
            .await?;
        let seen = events.wait(&app.id, &Event::Exit(app.id.clone(), 0)).await;
        if let (Err(error), Handler::Runc) = (&seen, cx.handler) {
            // On a busy machine the stock shim has been seen to lose one.
            println!("the stock shim, round {round}: {error:#}");
            continue;
        }
        let seen: Vec<_> = seen?.into_iter().take(3).collect();
        let expected = [Event::Create, Event::Start, Event::Exit(app.id.clone(), 0)];
        ensure!(seen == expected, "round {round}: {seen:?}");
    }
    Ok(())
}

async fn events_of_the_sandbox(cx: Case) -> Result<()> {
    let events = Recorder::subscribe(&cx.lab).await?;
    let pod = cx.pod().start().await?;
    pod.remove().await?;
    let seen = events.wait(&pod.id, &Event::Delete(pod.id.clone())).await?;
    let exits = seen.iter().filter(|e| matches!(e, Event::Exit(..))).count();
    ensure!(
        seen[..2] == [Event::Create, Event::Start] && exits == 1,
        "{seen:?}"
    );
    Ok(())
}
