//! Whether a request carries what it must.

use std::time::SystemTime;

use super::{Found, JwtAuthn, KeySet, Provider, Requirement, Status, Token, find};
use crate::route::RequestView;

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Why the request is refused.
    pub status: Result<(), Status>,
    /// Tokens that are true: position of the provider, where it was, and the token.
    pub good: Vec<(usize, Found, Token)>,
    /// Providers whose keys the token does not name: newer ones may.
    pub unknown_keys: Vec<usize>,
}

/// Keys by the position of the provider, as far as they are at hand.
pub trait Keys {
    /// # Errors
    /// Why there are none.
    fn of(&self, provider: usize) -> Result<&KeySet, Status>;
}

struct Court<'a, K> {
    authn: &'a JwtAuthn,
    request: &'a RequestView<'a>,
    keys: &'a K,
    now: SystemTime,
    judgement: Judgement,
}

/// Judges a request.
pub fn judge(
    authn: &JwtAuthn,
    requirement: &Requirement,
    request: &RequestView<'_>,
    keys: &impl Keys,
    now: SystemTime,
) -> Judgement {
    let judgement = Judgement { status: Ok(()), good: vec![], unknown_keys: vec![] };
    let mut court = Court { authn, request, keys, now, judgement };
    let status = court.requirement(requirement);
    Judgement { status, ..court.judgement }
}

impl<K: Keys> Court<'_, K> {
    fn requirement(&mut self, requirement: &Requirement) -> Result<(), Status> {
        match requirement {
            Requirement::Provider { provider, audiences } => {
                let Some(config) = self.authn.providers.get(*provider) else {
                    return Err(Status::UnknownIssuer);
                };
                let found = find(self.request, &config.locations);
                if found.is_empty() {
                    return Err(Status::Missing);
                }
                found.into_iter().try_for_each(|found| {
                    let token = Token::parse(&found.text)?;
                    self.token(*provider, found, token, audiences.as_deref())
                })
            }
            Requirement::All(all) => all.iter().try_for_each(|one| self.requirement(one)),
            Requirement::Any(any) => {
                let mut worst = Status::Missing;
                for one in any {
                    match self.requirement(one) {
                        Ok(()) => return Ok(()),
                        Err(status) if status.weight() >= worst.weight() => worst = status,
                        Err(_) => {}
                    }
                }
                Err(worst)
            }
            Requirement::AllowMissing => self.of_anybody().into_iter().collect(),
            Requirement::AllowMissingOrFailed => {
                self.of_anybody();
                Ok(())
            }
        }
    }

    /// Tokens at the places of all providers, each judged by the provider that issued it.
    fn of_anybody(&mut self) -> Vec<Result<(), Status>> {
        let mut all: Vec<Found> = vec![];
        for provider in &self.authn.providers {
            for found in find(self.request, &provider.locations) {
                if !all.contains(&found) {
                    all.push(found);
                }
            }
        }
        all.into_iter().map(|found| self.of_issuer(found)).collect()
    }

    fn of_issuer(&mut self, found: Found) -> Result<(), Status> {
        let token = Token::parse(&found.text)?;
        let of = |issuer: &str| {
            let fits = |p: &Provider| p.issuer == issuer && p.locations.contains(&found.location);
            self.authn.providers.iter().position(fits)
        };
        // One without an issuer takes those of everybody else.
        let at = of(&token.issuer).or_else(|| of("")).ok_or(Status::UnknownIssuer)?;
        self.token(at, found, token, None)
    }

    fn token(
        &mut self,
        at: usize,
        found: Found,
        token: Token,
        audiences: Option<&[String]>,
    ) -> Result<(), Status> {
        let Some(provider) = self.authn.providers.get(at) else { return Err(Status::UnknownIssuer) };
        token.fits(provider, audiences, self.now)?;
        let verified = self.keys.of(at)?.verify(&token);
        if verified == Err(Status::NoSuchKey) {
            self.judgement.unknown_keys.push(at);
        }
        verified?;
        let good = (at, found, token);
        if !self.judgement.good.contains(&good) {
            self.judgement.good.push(good);
        }
        Ok(())
    }
}
