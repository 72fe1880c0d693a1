//! `clustermesh delete`

use xds_proto::isthmus::admin::v1::{DeleteRequest, DeleteResponse, ObjectRef};

use super::{
    args::DeleteArgs,
    client::{REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    kinds, manifest, object, out,
    server::Server,
    wait,
};

/// How the control plane says that there was nothing to delete.
const NOT_FOUND: &str = "not found";

pub(crate) async fn run(server: &Server, args: &DeleteArgs) -> Result<(), Failure> {
    let objects = references(args)?;
    let mut admin = connect(server).await?;
    let answer = within(REQUEST_TIMEOUT, admin.delete(DeleteRequest { objects })).await?;
    let (text, missing) = outcome(&answer);
    out::print(&text)?;
    if args.wait && !text.is_empty() {
        let last = wait::follow(&mut admin, answer.revision, args.timeout).await?;
        if let Some(failure) = wait::failure(&last, args.timeout) {
            return Err(failure);
        }
    }
    if missing.is_empty() || args.ignore_not_found {
        return Ok(());
    }
    Err(Failure::not_found(format!("{} not found; nothing to delete there", missing.join(", "))))
}

fn references(args: &DeleteArgs) -> Result<Vec<ObjectRef>, Failure> {
    let namespace = args.namespace.as_deref();
    if !args.filenames.is_empty() {
        let documents = manifest::read(&args.filenames, namespace)?;
        let reference = |d: &manifest::Document| ObjectRef {
            kind: object::kind(&d.object).to_owned(),
            namespace: object::namespace(&d.object).to_owned(),
            name: object::name(&d.object).to_owned(),
        };
        return Ok(documents.iter().map(reference).collect());
    }
    kinds::parse(&args.what)?
        .into_iter()
        .map(|target| {
            let name = target.name.ok_or_else(|| {
                Failure::usage(format!(
                    "name what to delete, for instance '{} web'; a whole kind is never deleted at once",
                    target.kind.as_str().to_ascii_lowercase()
                ))
            })?;
            Ok(ObjectRef {
                kind: target.kind.as_str().to_owned(),
                namespace: namespace.unwrap_or("default").to_owned(),
                name,
            })
        })
        .collect()
}

/// What is printed, and what was not there.
fn outcome(answer: &DeleteResponse) -> (String, Vec<String>) {
    let (mut text, mut missing) = (String::new(), Vec::new());
    for o in &answer.outcomes {
        let reference = object::reference(&o.kind, &o.name);
        if o.outcome == NOT_FOUND {
            missing.push(reference);
        } else {
            text.push_str(&format!("{reference} {}\n", o.outcome));
        }
    }
    (text, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure;
    use xds_proto::isthmus::admin::v1::ObjectOutcome;

    fn args(what: &[&str]) -> DeleteArgs {
        DeleteArgs {
            what: what.iter().map(|w| (*w).to_owned()).collect(),
            filenames: Vec::new(),
            namespace: None,
            ignore_not_found: false,
            wait: false,
            timeout: std::time::Duration::from_secs(30),
        }
    }

    #[test]
    fn a_whole_kind_is_never_deleted() {
        assert_eq!(references(&args(&["svc"])).unwrap_err().code, failure::USAGE);
        assert_eq!(references(&args(&["all"])).unwrap_err().code, failure::USAGE);
        let refs = references(&args(&["svc", "pay"])).unwrap();
        assert_eq!((refs[0].kind.as_str(), refs[0].namespace.as_str()), ("Service", "default"));
    }

    #[test]
    fn what_was_not_there_is_told_apart() {
        let o = |name: &str, outcome: &str| ObjectOutcome {
            kind: "Service".into(),
            namespace: "shop".into(),
            name: name.into(),
            outcome: outcome.into(),
        };
        let answer = DeleteResponse { revision: 1, outcomes: vec![o("a", "deleted"), o("b", "not found")] };
        assert_eq!(outcome(&answer), ("service/a deleted\n".to_owned(), vec!["service/b".to_owned()]));
    }
}
