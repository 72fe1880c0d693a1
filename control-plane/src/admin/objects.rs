//! `Apply`, `Delete` and `List`: from wire to commands and from state to wire.

use mesh_model::{
    compile::MeshModel,
    resource::{Kind, LabelQuery, Labels, NamespacedName, Object, ObjectKey},
};
use mesh_store::{State, limits::MAX_OBJECTS_PER_COMMAND};
use tonic::Status;
use xds_proto::isthmus::admin::v1::{ListRequest, ObjectOutcome, ObjectRef};

use super::render;
use crate::shown;

/// Parses every document of an apply: all of them are fine, or the first that is not is named.
///
/// # Errors
/// `objects[3]: networkpolicy/shop/x: spec.foo: unknown field ...`
pub fn parse(documents: &[Vec<u8>]) -> Result<Vec<Object>, Status> {
    let refuse = |text: String| Err(Status::invalid_argument(text));
    if documents.is_empty() {
        return refuse("objects: none is given".to_owned());
    }
    if documents.len() > MAX_OBJECTS_PER_COMMAND {
        let count = documents.len();
        return refuse(format!(
            "objects: {count} are given, {MAX_OBJECTS_PER_COMMAND} are allowed in one apply"
        ));
    }
    let mut objects = Vec::with_capacity(documents.len());
    for (index, bytes) in documents.iter().enumerate() {
        let value = match serde_json::from_slice(bytes) {
            Ok(value) => value,
            Err(error) => {
                let error = shown::sentence(error);
                return refuse(format!("objects[{index}]: no JSON document: {error}"));
            }
        };
        match Object::parse(&value) {
            Ok(object) => objects.push(object),
            Err(error) => return refuse(format!("objects[{index}]: {}", shown::sentence(error))),
        }
    }
    Ok(objects)
}

/// Names of objects to be deleted.
///
/// # Errors
/// The first reference that names nothing.
pub fn keys(references: &[ObjectRef]) -> Result<Vec<ObjectKey>, Status> {
    let refuse = |text: String| Err(Status::invalid_argument(text));
    if references.is_empty() {
        return refuse("objects: none is given".to_owned());
    }
    if references.len() > MAX_OBJECTS_PER_COMMAND {
        return refuse(format!("objects: {} are given, {MAX_OBJECTS_PER_COMMAND} allowed", references.len()));
    }
    references
        .iter()
        .enumerate()
        .map(|(index, reference)| {
            let kind = kind(&reference.kind)
                .map_err(|e| Status::invalid_argument(format!("objects[{index}].{}", e.message())))?;
            let name = match kind.is_cluster_scoped() {
                true => Some(kind.name("", &reference.name))
                    .filter(|name| !name.name.is_empty() && !name.name.contains('/')),
                false => NamespacedName::parse(&format!("{}/{}", reference.namespace, reference.name)),
            };
            let bad = || {
                Status::invalid_argument(format!(
                    "objects[{index}]: {:?} in namespace {:?} names no object",
                    shown::word(&reference.name),
                    shown::word(&reference.namespace)
                ))
            };
            Ok(ObjectKey { kind, name: name.ok_or_else(bad)? })
        })
        .collect()
}

/// A kind by what a person types.
///
/// # Errors
/// Names it and lists the known ones.
pub fn kind(text: &str) -> Result<Kind, Status> {
    let known = || Kind::ALL.map(Kind::as_str).join(", ");
    Kind::from_user(text).ok_or_else(|| {
        let text = shown::word(text);
        Status::invalid_argument(format!("kind: {text:?} is none of {}", known()))
    })
}

/// What happened to each object.
pub fn outcomes(outcomes: &[mesh_store::ObjectOutcome]) -> Vec<ObjectOutcome> {
    outcomes
        .iter()
        .map(|outcome| ObjectOutcome {
            kind: outcome.key.kind.as_str().to_owned(),
            namespace: outcome.key.name.namespace.clone(),
            name: outcome.key.name.name.clone(),
            outcome: outcome.change.as_str().to_owned(),
        })
        .collect()
}

/// Which objects a `List` or `Watch` is about.
#[derive(Debug, Clone)]
pub struct Filter {
    kinds: Vec<Kind>,
    namespace: String,
    name: String,
    selector: LabelQuery,
}

impl Filter {
    /// From the request. The kind `all` means every kind; where a namespace is asked for, every one that has namespaces.
    /// A kind of the whole cluster is listed whatever the namespace.
    ///
    /// # Errors
    /// An unknown kind or a malformed selector.
    pub fn new(request: &ListRequest) -> Result<Self, Status> {
        let kinds = match request.kind.as_str() {
            "all" => {
                let wanted = |kind: &Kind| request.namespace.is_empty() || !kind.is_cluster_scoped();
                Kind::ALL.into_iter().filter(wanted).collect()
            }
            one => vec![kind(one)?],
        };
        Ok(Self {
            kinds,
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            selector: LabelQuery::parse(&request.label_selector).map_err(Status::invalid_argument)?,
        })
    }

    /// Whether an object is one of them.
    pub fn matches(&self, object: &Object) -> bool {
        let meta = object.meta();
        self.kinds.contains(&object.kind())
            && (self.within(object.kind()).is_empty() || self.namespace == meta.name.namespace)
            && (self.name.is_empty() || self.name == meta.name.name)
            && self.selector.matches(&meta.labels)
    }

    /// Whether objects of a kind and a namespace (empty: of any) can be among them.
    pub fn wants(&self, kind: Kind, namespace: &str) -> bool {
        let own = self.within(kind);
        let either_is_all = own.is_empty() || namespace.is_empty();
        self.kinds.contains(&kind) && (either_is_all || own == namespace)
    }

    /// The namespace that objects of a kind are to be of; empty: any, or none.
    fn within(&self, kind: Kind) -> &str {
        if kind.is_cluster_scoped() { "" } else { &self.namespace }
    }

    /// The objects of a state, in the order of kind, namespace and name, each with its revision.
    pub fn select<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Selected<'a>> {
        self.kinds.iter().flat_map(move |kind| self.select_within(state, *kind, self.within(*kind)))
    }

    /// Those of them that are of a kind and in a namespace (empty: in any). Costs in proportion to these.
    pub fn select_within<'a>(
        &'a self,
        state: &'a State,
        kind: Kind,
        namespace: &str,
    ) -> impl Iterator<Item = Selected<'a>> + use<'a> {
        let namespace = namespace.to_owned();
        let name = NamespacedName::new(namespace.clone(), "");
        state
            .objects
            .range(ObjectKey { kind, name }..)
            .take_while(move |(key, _)| {
                key.kind == kind && (namespace.is_empty() || key.name.namespace == namespace)
            })
            .filter(|(_, object)| self.matches(object))
            .filter_map(|(key, object)| Some((key, object.as_ref(), state.object_meta.get(key)?.as_ref())))
    }
}

/// An object with its name and what the store knows of it.
pub type Selected<'a> = (&'a ObjectKey, &'a Object, &'a mesh_store::StoredMeta);

impl Filter {
    /// Services that only peers have: no object of this cluster, yet callable here. None has labels. Which ones is the
    /// state's to say; the model may be of a later one already, in which there are more of this cluster.
    pub fn imported(&self, state: &State, model: &MeshModel) -> Vec<Vec<u8>> {
        if !self.kinds.contains(&Kind::Service) || !self.selector.matches(&Labels::new()) {
            return Vec::new();
        }
        let local = |name: &NamespacedName| {
            state.objects.contains_key(&ObjectKey { kind: Kind::Service, name: name.clone() })
        };
        model
            .services
            .iter()
            .filter(|(name, _)| self.namespace.is_empty() || self.namespace == name.namespace)
            .filter(|(name, _)| self.name.is_empty() || self.name == name.name)
            .filter(|(name, _)| {
                !local(name) && state.peers.values().any(|peer| peer.imports.contains_key(*name))
            })
            .map(|(name, service)| render::imported(name, service, model).to_string().into_bytes())
            .collect()
    }
}

/// One object as it goes over the wire.
pub fn encode(
    object: &Object,
    stored: &mesh_store::StoredMeta,
    state: &State,
    model: Option<&MeshModel>,
) -> Vec<u8> {
    let status = model.and_then(|model| render::status(object, state, model));
    render::object(object, stored, status).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_document_is_named_with_its_place_and_field() {
        let good =
            br#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80}]}}"#;
        let bad = br#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"prots":[]}}"#;
        let status = parse(&[good.to_vec(), bad.to_vec()]).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(
            status.message().starts_with("objects[1]: ") && status.message().contains("prots"),
            "{status}"
        );
        assert!(parse(&[b"{".to_vec()]).unwrap_err().message().contains("no JSON"));
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn unknown_kinds_are_refused_with_those_that_are_known() {
        let status = kind("pods").unwrap_err();
        assert!(status.message().contains("\"pods\"") && status.message().contains("HTTPRoute"), "{status}");
        let reference = ObjectRef { kind: "svc".into(), namespace: String::new(), name: "a".into() };
        assert!(keys(&[reference]).unwrap_err().message().contains("objects[0]"));
    }

    #[test]
    fn a_refusal_is_short_however_long_the_words_were_that_it_refuses() {
        // What a client takes of all headers of an answer.
        const FITS: usize = 8 << 10;
        let long = "x\"\u{0}".repeat(100_000);
        let reference = |kind: &str, namespace: &str, name: &str| ObjectRef {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let named = br#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"NAME"},"spec":{}}"#;
        let named = String::from_utf8_lossy(named).replace("NAME", &"n".repeat(200_000)).into_bytes();
        let field =
            format!(r#"{{"apiVersion":"v1","kind":"Service","{}":1}}"#, "f".repeat(200_000)).into_bytes();
        for refused in [
            kind(&long).unwrap_err(),
            keys(&[reference(&long, "", "a")]).unwrap_err(),
            keys(&[reference("svc", &long, &format!("{long}/"))]).unwrap_err(),
            parse(&[named]).unwrap_err(),
            parse(&[field]).unwrap_err(),
            Filter::new(&ListRequest { label_selector: "\u{200b}\"".repeat(1_000), ..all() }).unwrap_err(),
        ] {
            assert!(refused.message().len() < FITS, "{} bytes", refused.message().len());
        }
    }

    fn all() -> ListRequest {
        ListRequest { kind: "all".to_owned(), ..Default::default() }
    }
}
