//! `clustermesh describe`

use super::{
    args::DescribeArgs,
    client::connect,
    failure::Failure,
    get, kinds, now_unix,
    out::{self, Paint},
    render, selector,
    server::Server,
};

pub(crate) async fn run(server: &Server, args: &DescribeArgs) -> Result<(), Failure> {
    let targets = kinds::parse(&args.what)?;
    selector::check(&args.selector)?;
    let namespace = args.scope.wire();
    let mut admin = connect(server).await?;
    let found = get::list(&mut admin, &targets, &namespace, &args.selector).await?;
    let (now, paint) = (now_unix(), Paint::for_stdout());
    let pages: Vec<String> =
        found.objects.iter().map(|o| render::describe::render(o, now, paint)).collect::<Result<_, _>>()?;
    if pages.is_empty() && found.missing.is_empty() {
        out::remark("nothing found");
    }
    out::print(&pages.join("\n\n"))?;
    get::absent(&found.missing, &namespace).map_or(Ok(()), Err)
}
