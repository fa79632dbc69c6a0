//! Lifecycle conformance of the shim.
use kybernate_integration::{Case, Suite};
use std::process::ExitCode;

async fn says_hello(cx: Case) -> anyhow::Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("echo hello").start().await?;
    anyhow::ensure!(app.wait_exit().await?.exit_code == 0);
    anyhow::ensure!(app.stdout()? == "hello\n");
    Ok(())
}

fn main() -> ExitCode {
    Suite::new("lifecycle").case("says_hello", says_hello).run()
}
