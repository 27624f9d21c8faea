//! What the host expects of a bit policy.

use taq_policy::{PolicyPlan, PolicyRequest, testing};

use super::{Begins, Report, Suite};
use crate::{Error, Result};

/// A bit policy under test, in whatever way it is written.
pub trait Plans: Sync {
    /// Makes an instance from settings (JSON), or from its own, and ends it.
    ///
    /// # Errors
    /// What the policy says of the settings.
    fn create(&self, settings: Option<&str>) -> Result<()>;

    /// The plan of a request, by a new instance.
    ///
    /// # Errors
    /// What the policy says, or what is wrong with its answer.
    fn plan(&self, request: &PolicyRequest) -> Result<PolicyPlan>;
}

/// Panics with a list of what is wrong, if anything is.
///
/// # Panics
/// If the policy does not conform.
#[track_caller]
pub fn assert_policy_conforms(policy: &dyn Plans) {
    check_policy(policy, &mut |_| {}).assert();
}

/// Holds a bit policy to what the host expects of it. `begins` is told of each check.
pub fn check_policy(policy: &dyn Plans, begins: Begins<'_>) -> Report {
    let mut suite = Suite::new(begins);
    suite.check("settings that are none are refused", || {
        for wrong in ["[1]", "{"] {
            match policy.create(Some(wrong)) {
                Err(Error::Invalid(text)) if !text.is_empty() => {}
                other => return Err(format!("settings {wrong}: {other:?}, expected INVALID with a text")),
            }
        }
        policy.create(None).map_err(|e| format!("its own settings are refused: {e}"))
    });
    suite.check("plans answer their requests", || {
        for request in [testing::sd3_request(2, 64, 4), testing::sd3_request(6, 192, 28)] {
            let plan = policy.plan(&request).map_err(|e| e.to_string())?;
            plan.check(&request).map_err(|e| e.to_string())?;
        }
        Ok(())
    });
    suite.check("the same request, the same plan, on any thread", || {
        let request = testing::sd3_request(3, 96, 10);
        let here = policy.plan(&request).map_err(|e| e.to_string())?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| policy.plan(&request))).collect();
            for thread in threads {
                match thread.join() {
                    Ok(Ok(there)) if there == here => {}
                    Ok(Ok(_)) => return Err("two plans differ".into()),
                    Ok(Err(e)) => return Err(e.to_string()),
                    Err(_) => return Err("a thread panicked".into()),
                }
            }
            Ok(())
        })
    });
    suite.check("a request without layers does not end in a panic", || {
        match policy.plan(&PolicyRequest::new("nothing", Vec::new(), Vec::new())) {
            Err(Error::Panicked(text)) => Err(text),
            _ => Ok(()),
        }
    });
    suite.report
}
