//! That no stream misses a revision, whatever overtakes what: each test goes through all the orders in which the steps of
//! the compiler and those of a stream can happen. What is a step here happens under a lock, or is one exchange of a pointer.

use std::{cell::OnceCell, iter, thread};

use futures::FutureExt;
use mesh_model::{
    records::{ClusterInfo, WorkloadBinding},
    resource::Object,
};
use mesh_store::{Bytes16, Command, Envelope, apply};
use serde_json::{Value, json};

use super::*;
use crate::xds::{
    kinds,
    session::Protocol,
    subscribers::{Connected, Opening},
};

fn own() -> TrustDomain {
    TrustDomain::parse("west.example").unwrap()
}

/// A state, and those after it.
struct World(State);

impl World {
    fn new() -> Self {
        let mut world = Self(State::default());
        world.take(Command::Init(ClusterInfo {
            name: "west".to_owned(),
            trust_domain: own(),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: vec![vec![9]],
            trust: Default::default(),
        }));
        world.take(Command::RegisterNode {
            name: "n1".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            address6: None,
        });
        world.put(json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"serviceAccount": "web", "proxy": "sidecar", "ports": [{"port": 8080}]},
        }));
        let (workload, node) = (NamespacedName::new("shop", "web"), "n1".to_owned());
        let binding = WorkloadBinding { node, addresses: vec!["10.1.0.9".parse().unwrap()], ready: true };
        world.take(Command::BindWorkload { workload, binding });
        world.service(80);
        world
    }

    fn take(&mut self, command: Command) {
        let key = Bytes16(u128::from(self.0.revision + 1).to_be_bytes());
        let envelope = Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command };
        apply(&mut self.0, &envelope).outcome.unwrap();
    }

    fn put(&mut self, object: Value) {
        self.take(Command::Apply { objects: vec![Object::parse(&object).unwrap()], dry_run: false });
    }

    /// The one service, which everybody is told of, has this port now.
    fn service(&mut self, port: u16) -> Arc<State> {
        self.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "pay", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": port, "targetPort": 8080}]},
        }));
        Arc::new(self.0.clone())
    }

    fn sidecar(&mut self, host: &str) {
        self.put(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": "shop"}, "spec": {"egress": [{"hosts": [host]}]},
        }));
    }

    fn views(&self) -> (ModelViews, Arc<Subscribers>) {
        let views = ModelViews::new(own(), Vec::new(), &self.0);
        let subscribers = Arc::new(Subscribers::new());
        views.tell(subscribers.clone());
        (views, subscribers)
    }
}

fn agent() -> Client {
    Client::Agent { node: "n1".to_owned() }
}

fn proxy() -> Client {
    Client::Proxy { workload: "shop/web".to_owned(), kind: ProxyKind::Proxy }
}

/// The compiler, a step at a time.
struct Updates<'a> {
    views: &'a ModelViews,
    subscribers: &'a Subscribers,
    states: Vec<Arc<State>>,
    step: Option<Step>,
    done: usize,
}

impl<'a> Updates<'a> {
    /// Of one revision: it is stored, it is told of, it is published.
    const STEPS: usize = 3;

    fn new(views: &'a ModelViews, subscribers: &'a Subscribers, states: &[Arc<State>]) -> Self {
        Self { views, subscribers, states: states.to_vec(), step: None, done: 0 }
    }

    fn next(&mut self) {
        let step = self.done % Self::STEPS;
        match (step, &self.step) {
            (0, _) => {
                let state = &self.states[self.done / Self::STEPS];
                self.step = self.views.take_over(&mut self.views.compiler(), state);
                assert!(self.step.is_some());
            }
            (1, Some(step)) => {
                let stands = |client: &Client, entry: &Entry| step.compiled.stands(client, entry);
                self.views.tell_of(step, self.subscribers, stands);
            }
            (_, Some(step)) => drop(self.views.changed.send_replace(step.compiled.revision)),
            (_, None) => unreachable!("nothing was stored"),
        }
        self.done += 1;
    }
}

/// A stream that is listed, as `xds::server::stream` goes about it.
struct Stream<'a> {
    views: &'a ModelViews,
    client: Client,
    changed: watch::Receiver<u64>,
    connected: Connected<'a>,
    set: Arc<ResourceSet>,
    revision: u64,
}

fn connect<'a>(subscribers: &'a Subscribers, client: &Client, revision: u64) -> Connected<'a> {
    let opening = Opening {
        client: client.clone(),
        id: client.to_string().into(),
        kind: client.kind(),
        node_id: String::new(),
        protocol: Protocol::Delta,
        revision,
    };
    subscribers.connect(subscribers.next_stream(), opening).unwrap()
}

impl<'a> Stream<'a> {
    /// One that has opened and looked, and sleeps.
    fn asleep(views: &'a ModelViews, subscribers: &'a Subscribers, client: &Client) -> Self {
        let changed = views.changed();
        let revision = *changed.borrow();
        let connected = connect(subscribers, client, revision);
        let set = views.resources(client);
        connected.opened(revision);
        let mut stream = Self { views, client: client.clone(), changed, connected, set, revision };
        stream.turn();
        stream
    }

    /// Once around the loop.
    fn turn(&mut self) {
        let due = self.connected.due();
        let revision = (*self.changed.borrow_and_update()).max(due.map_or(0, |due| due.revision));
        if revision > self.revision {
            let set = self.views.resources(&self.client);
            assert!(set.revision >= self.set.revision, "nothing goes back");
            self.revision = revision.max(set.revision);
            self.set = set;
        }
        self.connected.update(iter::empty(), self.revision);
    }

    /// Goes around as often as it is woken.
    fn awake(&mut self) {
        while self.connected.woken().now_or_never().is_some() {
            self.turn();
        }
    }

    /// It has what there is, and counts as knowing the newest revision.
    fn is_up_to_date(&self, order: &[bool]) {
        let newest = self.views.compiled.load().revision;
        assert!(self.set.shares_all(&self.views.resources(&self.client)), "{} at {order:?}", self.client);
        assert_eq!(self.connected.seen_revision(), newest, "{} at {order:?}", self.client);
        assert_eq!(self.connected.due(), None);
    }
}

/// All the orders of so many steps of one (true) and of another.
fn orders(one: usize, other: usize) -> Vec<Vec<bool>> {
    let steps = one + other;
    let all = (0..1_u32 << steps).filter(|bits| bits.count_ones() as usize == one);
    all.map(|bits| (0..steps).map(|step| bits >> step & 1 == 1).collect()).collect()
}

/// Worlds in which a client has what everybody has, and what is selected for it; and two states after each.
fn worlds() -> Vec<(World, Client, [Arc<State>; 2])> {
    let of = |sidecar: Option<&str>, client: Client| {
        let mut world = World::new();
        sidecar.into_iter().for_each(|host| world.sidecar(host));
        let mut later = World(world.0.clone());
        let states = [81, 82].map(|port| later.service(port));
        (world, client, states)
    };
    vec![of(None, agent()), of(None, proxy()), of(Some("./*"), proxy())]
}

#[test]
fn an_opening_stream_misses_no_revision_that_is_stored_or_told_of_between_any_two_of_its_steps() {
    const STEPS: usize = 6;
    for (world, client, states) in worlds() {
        for order in orders(2 * Updates::STEPS, STEPS) {
            let (views, subscribers) = world.views();
            let mut updates = Updates::new(&views, &subscribers, &states);
            let changed = views.changed();
            let (entry, mut looking, mut connected) = (OnceCell::new(), None, None);
            let (mut at, mut set, mut stream, mut step) = (0, None, None, 0);
            for turn in &order {
                if *turn {
                    updates.next();
                    continue;
                }
                match step {
                    0 => {
                        at = *changed.borrow();
                        connected = Some(connect(&subscribers, &client, at));
                    }
                    1 => entry.set(views.entry(&client)).unwrap(),
                    // From here on the lock is held, which the compiler must not wait for.
                    2 => looking = Some((entry.get().unwrap().lock().unwrap(), views.compiled.load_full())),
                    3 => {
                        let (mut made, compiled) = looking.take().unwrap();
                        set = Some(views.look(&client, &mut made, &compiled));
                    }
                    4 => {
                        let (set, connected) = (set.take().unwrap(), connected.take().unwrap());
                        let revision = at.max(set.revision);
                        connected.opened(revision);
                        let (views, client, changed) = (&views, client.clone(), changed.clone());
                        stream = Some(Stream { views, client, changed, connected, set, revision });
                    }
                    _ => stream.as_mut().unwrap().turn(),
                }
                step += 1;
            }
            let mut stream = stream.unwrap();
            stream.awake();
            stream.is_up_to_date(&order);
        }
    }
}

#[test]
fn a_sleeping_stream_misses_no_revision_though_others_of_its_client_come_look_and_go_meanwhile() {
    const STEPS: usize = 5;
    for (world, client, states) in worlds() {
        for order in orders(2 * Updates::STEPS, STEPS) {
            let (views, subscribers) = world.views();
            let mut sleeping = Stream::asleep(&views, &subscribers, &client);
            let mut updates = Updates::new(&views, &subscribers, &states);
            let (mut other, mut step) = (None, 0);
            for turn in &order {
                if *turn {
                    updates.next();
                    continue;
                }
                match step {
                    0 => other = Some(connect(&subscribers, &client, *views.changed().borrow())),
                    // What it finds is right from then on, and the other knows nothing of it.
                    1 => drop(views.resources(&client)),
                    2 => sleeping.awake(),
                    3 => drop(other.take()),
                    _ => views.forget_the_gone(),
                }
                step += 1;
            }
            sleeping.awake();
            sleeping.is_up_to_date(&order);
        }
    }
}

#[test]
fn a_stream_that_is_gone_before_it_is_told_takes_nothing_with_it() {
    for (world, client, states) in worlds() {
        for order in orders(Updates::STEPS, 2) {
            let (views, subscribers) = world.views();
            let (gone, mut left) = (
                Stream::asleep(&views, &subscribers, &client),
                Stream::asleep(&views, &subscribers, &agent()),
            );
            let (mut updates, mut gone) = (Updates::new(&views, &subscribers, &states[..1]), Some(gone));
            for turn in &order {
                match turn {
                    true => updates.next(),
                    false if gone.is_some() => drop(gone.take()),
                    false => views.forget_the_gone(),
                }
            }
            left.awake();
            left.is_up_to_date(&order);
            assert_eq!(subscribers.list().len(), 1);
        }
    }
}

#[test]
fn the_compiler_waits_for_no_stream_that_is_looking() {
    let mut world = World::new();
    let (views, subscribers) = world.views();
    let mut stream = Stream::asleep(&views, &subscribers, &proxy());
    let entry = views.entry(&proxy());
    let looking = entry.lock().unwrap();
    // On this thread: it would never come back.
    views.update(world.service(81));
    drop(looking);
    stream.awake();
    stream.is_up_to_date(&[]);
}

#[test]
fn a_panic_over_one_client_leaves_nobody_untold_and_stops_no_later_revision() {
    let mut world = World::new();
    let (views, subscribers) = world.views();
    let mut streams = [agent(), proxy()].map(|client| Stream::asleep(&views, &subscribers, &client));
    let step = views.take_over(&mut views.compiler(), &world.service(81)).unwrap();
    views.tell_of(&step, &subscribers, |client, _| {
        assert_ne!(*client, agent(), "this is what the test is about");
        false
    });
    for stream in &mut streams {
        stream.awake();
        stream.is_up_to_date(&[]);
    }
    views.update(world.service(82));
    for stream in &mut streams {
        stream.awake();
        stream.is_up_to_date(&[]);
    }
}

#[test]
fn after_a_panic_in_the_compiler_the_views_stand_and_the_next_state_is_compiled_from_the_beginning() {
    let mut world = World::new();
    let (views, subscribers) = world.views();
    let mut stream = Stream::asleep(&views, &subscribers, &proxy());
    let before = stream.set.clone();
    thread::scope(|scope| {
        let compiling = scope.spawn(|| {
            let _compiler = views.compiler();
            panic!("this is what the test is about");
        });
        assert!(compiling.join().is_err());
    });
    assert!(Arc::ptr_eq(&views.resources(&proxy()), &before));
    // What was there before is gone, which a compiler that begins anew has no words for.
    world.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 90, "targetPort": 8080}]},
    }));
    let key = ObjectKey { kind: Kind::Service, name: NamespacedName::new("shop", "pay") };
    world.take(Command::Delete { keys: vec![key] });
    views.update(Arc::new(world.0.clone()));
    stream.awake();
    stream.is_up_to_date(&[]);
    let names: Vec<_> = stream.set.of(kinds::ENDPOINT).unwrap().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["outbound|90|cart.shop"]);
}

#[test]
fn what_is_shared_is_at_hand_once_all_of_it_is_made_and_not_just_what_everybody_has() {
    let mut world = World::new();
    let (views, _) = world.views();
    for client in [agent(), proxy()] {
        assert!(!views.at_hand(&client));
        views.resources(&client);
        assert!(views.at_hand(&client), "{client}");
    }
    world.sidecar("*/*");
    views.update(Arc::new(world.0.clone()));
    assert!(!views.at_hand(&proxy()), "what its Sidecar selects is to be made");
    views.resources(&proxy());
    assert!(views.at_hand(&proxy()));
    views.update(world.service(81));
    assert!(views.at_hand(&proxy()), "it is kept up to date");
    assert!(views.at_hand(&Client::Peer { cluster: "east".to_owned() }), "nothing of theirs is shared");
}
