// gRPC's own xDS client for Node. Takes and gives the same lines of JSON as client.py.
const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');
xds.register();

const channels = new Map();
const text = { serialize: (value) => Buffer.from(value), deserialize: (bytes) => bytes.toString() };

function open({ open: target, xds_credentials }) {
  const insecure = grpc.credentials.createInsecure();
  const credentials = xds_credentials ? new xds.XdsChannelCredentials(insecure) : insecure;
  channels.set(target, new grpc.Client(target, credentials));
  return {};
}

function once(client, path) {
  const deadline = new Date(Date.now() + 20000);
  return new Promise((resolve) => {
    const done = (error, answer) =>
      resolve(error ? { error: `${grpc.status[error.code]}: ${error.details}` } : { answer });
    client.makeUnaryRequest(path, text.serialize, text.deserialize, '', new grpc.Metadata(), { deadline }, done);
  });
}

async function call({ call: target, count, path }) {
  const result = { answers: {}, errors: [] };
  for (let i = 0; i < count; i++) {
    const { answer, error } = await once(channels.get(target), path);
    if (error) result.errors.push(error);
    else result.answers[answer] = (result.answers[answer] ?? 0) + 1;
  }
  return result;
}

(async () => {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    console.log(JSON.stringify(command.open ? open(command) : await call(command)));
  }
  process.exit(0);
})();
