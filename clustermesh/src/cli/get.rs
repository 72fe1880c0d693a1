//! `clustermesh get`

use std::collections::BTreeMap;

use mesh_model::resource::Kind;
use serde_json::Value;
use xds_proto::isthmus::admin::v1::ListRequest;

use super::{
    args::{GetArgs, GetOutput},
    client::{Admin, REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    kinds::{self, Target},
    now_unix, object,
    out::{self, Paint},
    render::{
        self,
        columns::{self, Style},
    },
    selector,
    server::Server,
    watch,
};

/// What a list brought.
pub(crate) struct Found {
    pub(crate) objects: Vec<Value>,
    pub(crate) revision: u64,
    /// Names that were asked for and are not there.
    pub(crate) missing: Vec<Target>,
}

pub(crate) async fn run(server: &Server, args: &GetArgs) -> Result<(), Failure> {
    let targets = kinds::parse(&args.what)?;
    selector::check(&args.selector)?;
    if args.watch && targets.len() != 1 {
        return Err(Failure::usage("watch one kind, or one object, at a time"));
    }
    let namespace = args.scope.wire();
    let mut admin = connect(server).await?;
    let found = list(&mut admin, &targets, &namespace, &args.selector).await?;
    let single = targets.len() == 1 && targets[0].name.is_some();
    show(&found, args, single)?;
    if args.watch {
        return watch::follow(server, &targets[0], &found, args).await;
    }
    absent(&found.missing, &namespace).map_or(Ok(()), Err)
}

/// Asks for every target, in their order.
pub(crate) async fn list(
    admin: &mut Admin,
    targets: &[Target],
    namespace: &str,
    selector: &str,
) -> Result<Found, Failure> {
    let mut found = Found { objects: Vec::new(), revision: 0, missing: Vec::new() };
    for target in targets {
        let request = ListRequest {
            kind: target.kind.as_str().to_owned(),
            namespace: namespace.to_owned(),
            name: target.name.clone().unwrap_or_default(),
            label_selector: selector.to_owned(),
        };
        let answer = match within(REQUEST_TIMEOUT, admin.list(request)).await {
            Ok(answer) => answer,
            Err(failure) if failure.code == super::failure::NOT_FOUND && target.name.is_some() => {
                found.missing.push(target.clone());
                continue;
            }
            Err(failure) => return Err(failure),
        };
        found.revision = answer.revision;
        if answer.objects.is_empty() && target.name.is_some() {
            found.missing.push(target.clone());
        }
        for bytes in &answer.objects {
            found.objects.push(object::parse(bytes)?);
        }
    }
    Ok(found)
}

/// The failure for names that are not there.
pub(crate) fn absent(missing: &[Target], namespace: &str) -> Option<Failure> {
    let first = missing.first()?;
    let names: Vec<_> = missing
        .iter()
        .map(|t| object::reference(t.kind.as_str(), t.name.as_deref().unwrap_or_default()))
        .collect();
    let place =
        if namespace.is_empty() { "any namespace".to_owned() } else { format!("namespace {namespace:?}") };
    Some(Failure::not_found(format!(
        "{} not found in {place}; see 'clustermesh get {} -A'",
        names.join(", "),
        first.kind.as_str().to_ascii_lowercase()
    )))
}

fn show(found: &Found, args: &GetArgs, single: bool) -> Result<(), Failure> {
    match args.output {
        GetOutput::Table | GetOutput::Wide => {
            if found.objects.is_empty() {
                if found.missing.is_empty() && !args.watch {
                    let namespace = args.scope.wire();
                    let place = if namespace.is_empty() {
                        String::new()
                    } else {
                        format!(" in namespace {namespace:?}")
                    };
                    out::remark(&format!("nothing found{place}"));
                }
                return Ok(());
            }
            out::print(&tables(&found.objects, style(args, false)))
        }
        GetOutput::Name => {
            let line = |o: &Value| object::reference(object::kind(o), object::name(o)) + "\n";
            out::print(&found.objects.iter().map(line).collect::<String>())
        }
        GetOutput::Json | GetOutput::Yaml => match (single || args.watch, found.objects.as_slice()) {
            (_, []) if single => Ok(()),
            (true, objects) => objects.iter().try_for_each(|o| whole(o, args)),
            (false, objects) => whole(&render::list(objects.to_vec()), args),
        },
    }
}

pub(super) fn whole(value: &Value, args: &GetArgs) -> Result<(), Failure> {
    match args.output {
        GetOutput::Yaml if args.watch => out::print(&format!("---\n{}", render::yaml(value)?)),
        GetOutput::Yaml => out::print(&render::yaml(value)?),
        _ => out::print(&render::json(value)),
    }
}

pub(super) fn style(args: &GetArgs, kinds: bool) -> Style {
    Style {
        namespaces: args.scope.all_namespaces,
        kinds,
        wide: args.output == GetOutput::Wide,
        headings: !args.no_headers,
        paint: Paint::for_stdout(),
        now: now_unix(),
    }
}

/// One table a kind, in listing order, with a blank line between them.
fn tables(objects: &[Value], style: Style) -> String {
    let mut by_kind: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for o in objects {
        if let Some(kind) = Kind::from_user(object::kind(o)) {
            by_kind.entry(kind).or_default().push(o.clone());
        }
    }
    let style = Style { kinds: by_kind.len() > 1, ..style };
    let tables: Vec<_> =
        by_kind.iter().map(|(kind, of_kind)| columns::render(*kind, of_kind, style)).collect();
    tables.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mixed_kinds_are_listed_in_order_with_their_kind() {
        let o = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name}});
        let style = Style {
            namespaces: false,
            kinds: false,
            wide: false,
            headings: true,
            paint: Paint::PLAIN,
            now: 0,
        };
        let text = tables(&[o("ServiceExport", "pay"), o("Service", "pay"), o("Strange", "x")], style);
        let names: Vec<_> = text.lines().map(|l| l.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["NAME", "service/pay", "", "NAME", "serviceexport/pay"]);
        assert!(tables(&[o("Service", "pay")], style).contains("\npay "));
    }

    #[test]
    fn absent_names_are_all_named() {
        let target = |name: &str| Target { kind: Kind::Service, name: Some(name.to_owned()) };
        let failure = absent(&[target("a"), target("b")], "shop").unwrap();
        assert_eq!(failure.code, 3);
        assert_eq!(
            failure.sentence,
            "service/a, service/b not found in namespace \"shop\"; see 'clustermesh get service -A'"
        );
        assert_eq!(absent(&[], "shop"), None);
    }
}
