//! The join tokens that were handed out: which there are, and the end of one before anybody has used it.

use std::sync::Arc;

use mesh_store::{Command, State, TokenPurpose};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::admin::v1::{
    ListTokensRequest, ListTokensResponse, RevokeTokenRequest, RevokeTokenResponse, Token,
    tokens_server::Tokens,
};

use crate::{
    app::{App, read_status, write_status},
    authz::Action,
    shown,
};

/// The service.
#[derive(Debug, Clone)]
pub struct TokensService(pub Arc<App>);

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn list(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        self.0.admit(request.extensions(), Action::CreateToken)?;
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        Ok(Response::new(ListTokensResponse { tokens: tokens(&state) }))
    }

    async fn revoke(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::CreateToken)?;
        let id = request.into_inner().id;
        let known = app.replica.linearizable().await.map_err(read_status)?.tokens.contains_key(&id);
        if !known {
            return Err(Status::not_found(format!("there is no token {:?}", shown::word(&id))));
        }
        let command = Command::RevokeToken { id: id.clone() };
        let applied = app.replica.write(command).await.map_err(write_status)?;
        tracing::info!(%caller, token = id, revision = applied.revision, "withdrew a join token");
        Ok(Response::new(RevokeTokenResponse { revision: applied.revision }))
    }
}

/// Those of the state, in the order in which they end.
fn tokens(state: &State) -> Vec<Token> {
    let one = |(id, token): (&String, &mesh_store::TokenRecord)| {
        let (purpose, node) = match &token.purpose {
            TokenPurpose::Peer => ("peer", None),
            TokenPurpose::Node(node) => ("node", node.clone()),
            TokenPurpose::Replica => ("replica", None),
        };
        Token {
            id: id.clone(),
            purpose: purpose.to_owned(),
            node: node.unwrap_or_default(),
            learner: token.learner,
            expires_unix: token.expires_unix,
            used_by: token.used_by.clone().unwrap_or_default(),
        }
    };
    let mut all: Vec<Token> = state.tokens.iter().map(one).collect();
    all.sort_by(|a, b| (a.expires_unix, &a.id).cmp(&(b.expires_unix, &b.id)));
    all
}
