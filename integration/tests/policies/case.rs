//! A policy as its user writes it, and who then gets where: asked of packets, of `clustermesh explain`, and of the flows
//! that were told. All three have to say the same, and to name the same rule.

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use integration::testbed::wait_until;
use serde_json::Value;

use super::{
    mesh::Mesh,
    probe::{self, Came, What},
};

/// For what is to come.
const LONG: Duration = Duration::from_secs(5);
/// For what is not to come. That nothing came of slowness is not taken for a denial: a flow has to say that it was one.
const SHORT: Duration = Duration::from_millis(400);

/// Objects that are applied, asked about, and deleted.
pub struct Case {
    /// The policy that a rule without a name before it is of: `networkpolicy/shop/x`.
    pub object: &'static str,
    pub yaml: &'static str,
    /// A line each: `web -> api tcp 8080 yes ingress[0]`.
    ///
    /// From and to are a pod, `n1` and `n2` (nodes), `out` and `out2`; to may be `SERVICE@POD`, asked at `PORT:BACKEND-PORT`.
    /// Then `tcp`, `udp`, `sctp` with a port, `echo`, or `icmp` with another type; with `/4` or `/6` by one family alone. Then `yes`, `no`, or
    /// `audit` (it passes, and is told of), and by which rule: `-` for none, `own-node` for the builtin one.
    pub asks: &'static str,
}

/// One packet that was sent, and what is to be told of it.
#[derive(Debug)]
pub struct Told {
    what: String,
    verdict: &'static str,
    rule: String,
    protocol: &'static str,
    source: Option<IpAddr>,
    source_port: u16,
    destination: IpAddr,
    port: u16,
}

struct Ask<'a> {
    from: &'a str,
    to: &'a str,
    service: Option<&'a str>,
    what: What,
    /// The port that the service's address is asked at.
    front: u16,
    v6: bool,
    says: &'a str,
    rule: String,
}

fn parse<'a>(object: &str, line: &'a str) -> Result<Vec<Ask<'a>>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (&[from, "->", to, protocol], rest) = words.split_first_chunk::<4>().context("too short")? else {
        bail!("not FROM -> TO");
    };
    let (protocol, families) = match protocol.split_once('/') {
        Some((protocol, "4")) => (protocol, &[false][..]),
        Some((protocol, "6")) => (protocol, &[true][..]),
        Some(_) => bail!("no such family"),
        None => (protocol, &[false, true][..]),
    };
    let (front, port, rest) = match (protocol, rest) {
        ("echo", rest) => (0, 0, rest),
        ("icmp", [kind, rest @ ..]) => (0, kind.parse::<u8>()?.into(), rest),
        (_, [port, rest @ ..]) => {
            let (front, port) = port.split_once(':').unwrap_or((port, port));
            (front.parse()?, port.parse()?, rest)
        }
        _ => bail!("no port"),
    };
    let what = match protocol {
        "tcp" => What::Tcp(port),
        "udp" => What::Udp(port),
        "sctp" => What::Sctp(port),
        "echo" => What::Echo,
        "icmp" => What::Icmp(u8::try_from(port)?),
        _ => bail!("no such protocol"),
    };
    let &[says @ ("yes" | "no" | "audit"), rule] = rest else { bail!("not yes, no or audit, and a rule") };
    let rule = match rule {
        "-" => String::new(),
        "own-node" => "builtin/own-node".to_owned(),
        full if full.contains('/') => full.to_owned(),
        rule => format!("{object}#{rule}"),
    };
    let (service, to) = match to.split_once('@') {
        Some((service, backend)) => (Some(service), backend),
        None => (None, to),
    };
    let ask = |v6: &bool| Ask { from, to, service, what, front, v6: *v6, says, rule: rule.clone() };
    Ok(families.iter().map(ask).collect())
}

impl Case {
    /// What is wrong, and what flows are to tell of.
    pub fn run(&self, mesh: &Mesh) -> Result<(Vec<String>, Vec<Told>)> {
        mesh.change("apply", self.yaml)?;
        let mut asks = Vec::new();
        for line in self.asks.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let parsed = parse(self.object, line).with_context(|| line.to_owned())?;
            asks.extend(parsed.into_iter().map(|ask| (line, ask)));
        }
        ensure!(!asks.is_empty(), "nothing is asked");
        let asked: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = asks.iter().map(|(_, ask)| scope.spawn(|| ask.put(mesh))).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let (mut wrong, mut told) = (Vec::new(), Vec::new());
        for ((line, ask), answer) in asks.iter().zip(asked) {
            let what = format!("{}: {line} (IPv{})", self.object, if ask.v6 { 6 } else { 4 });
            match answer {
                Ok(Ok((found, one))) => {
                    wrong.extend(found.into_iter().map(|found| format!("{what}: {found}")));
                    told.push(Told { what, ..one });
                }
                Ok(Err(error)) => wrong.push(format!("{what}: {error:#}")),
                Err(_) => wrong.push(format!("{what}: panicked")),
            }
        }
        mesh.change("delete", self.yaml)?;
        Ok((wrong, told))
    }
}

impl Ask<'_> {
    fn put(&self, mesh: &Mesh) -> Result<(Vec<String>, Told)> {
        let (from, to) = (mesh.end(self.from, self.v6)?, mesh.end(self.to, self.v6)?);
        let passes = self.says != "no";
        let patience = if passes { LONG } else { SHORT };
        let source = from.chooses.then_some(from.address);
        let came: Came = match (self.what, self.service) {
            (what @ (What::Sctp(_) | What::Icmp(_)), _) => {
                let ends = ((&*from.namespace, from.address), (&*to.namespace, to.address));
                probe::one_way(what, ends.0, ends.1, patience)?
            }
            (_, Some(service)) => {
                let [v4, v6] = mesh.west.virtual_ips("shop", service)?;
                let front = if self.v6 { v6 } else { v4 }.parse()?;
                let what = What::Tcp(self.front);
                probe::within(&from.namespace, || probe::ask(what, source, front, patience))?
            }
            (what, None) => {
                probe::within(&from.namespace, || probe::ask(what, source, to.address, patience))?
            }
        };
        let mut wrong = Vec::new();
        if came.through != passes {
            let became = if came.through { "passed" } else { "was not answered" };
            wrong.push(format!("the packet {became}"));
        }
        let (protocol, port) = (self.what.protocol(self.v6), self.what.port());
        // Of ICMP, only an echo is explained.
        if !matches!(self.what, What::Icmp(_)) {
            let said = mesh.explain(from.address, to.address, protocol, port)?;
            if !self.fits(&said) {
                wrong.push(format!("explained as {said}"));
            }
        }
        let verdict = match self.says {
            "yes" => "FORWARDED",
            "audit" => "AUDIT",
            _ => "DROPPED",
        };
        let told = Told {
            what: String::new(),
            verdict,
            rule: self.rule.clone(),
            protocol,
            source: (!from.chooses).then_some(from.address),
            source_port: came.source_port,
            destination: to.address,
            port,
        };
        Ok((wrong, told))
    }

    /// Whether an explanation has the verdict, and names the rule where it has its say.
    fn fits(&self, said: &Value) -> bool {
        let names = |side: &str, list: &str| -> Vec<String> {
            let list = said[side][list].as_array().cloned().unwrap_or_default();
            list.iter().filter_map(|rule| rule.as_str().map(str::to_owned)).collect()
        };
        let list = if self.says == "audit" { "audit" } else { "provenance" };
        let named = |side: &str| names(side, list).contains(&self.rule);
        let rule = match (self.rule.as_str(), direction(&self.rule)) {
            ("", _) => names("egress", list).is_empty() && names("ingress", list).is_empty(),
            (_, Some(side)) => named(&side.to_ascii_lowercase()),
            (_, None) => named("egress") || named("ingress"),
        };
        let verdict = if self.says == "no" { "DROPPED" } else { "FORWARDED" };
        rule && said["verdict"] == verdict
    }
}

/// Of the end that a rule is enforced at.
fn direction(rule: &str) -> Option<&'static str> {
    let (_, rule) = rule.split_once('#')?;
    Some(if rule.contains("egress") { "EGRESS" } else { "INGRESS" })
}

impl Told {
    fn is_of(&self, flow: &Value) -> bool {
        let address = |end: &str| flow[end]["address"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        flow["isReply"] == false
            && flow["protocol"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(self.protocol))
            && address("destination") == Some(self.destination)
            && self.source.is_none_or(|source| address("source") == Some(source))
            && (self.port == 0
                || (flow["source"]["port"] == self.source_port && flow["destination"]["port"] == self.port))
    }

    fn is_told_by(&self, flow: &Value) -> bool {
        let policy = flow["policy"].as_str().unwrap_or_default();
        let named = match self.rule.as_str() {
            "" => policy.is_empty() || policy == "builtin/undecided",
            rule => policy == rule,
        };
        named
            && flow["verdict"] == self.verdict
            && direction(&self.rule).is_none_or(|direction| flow["direction"] == direction)
    }
}

/// What flows do not tell as it was, after some time: they are reported a moment after they happened.
pub fn untold(mesh: &Mesh, all: &[Told]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let told = wait_until("all flows", Duration::from_secs(10), || {
        let flows = mesh.flows()?;
        left = all
            .iter()
            .filter(|told| !flows.iter().any(|flow| told.is_of(flow) && told.is_told_by(flow)))
            .map(|told| {
                let of: Vec<String> = flows
                    .iter()
                    .filter(|flow| told.is_of(flow))
                    .map(|flow| format!("{} {} {}", flow["verdict"], flow["direction"], flow["policy"]))
                    .collect();
                format!("{}: told as {of:?}", told.what)
            })
            .collect();
        Ok(left.is_empty().then_some(()))
    });
    match (told, left.is_empty()) {
        (Err(error), true) => Err(error),
        _ => Ok(left),
    }
}
