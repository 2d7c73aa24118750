// kafkajs, frozen since 2024: old versions of everything.
const { strict: assert } = require('assert');
const { Kafka, CompressionTypes, logLevel } = require('kafkajs');

async function main(address) {
  const kafka = new Kafka({ clientId: 'kafkajs', brokers: [address], logLevel: logLevel.ERROR });
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic: 'kafkajs', numPartitions: 3 }] });

  const producer = kafka.producer({ idempotent: true });
  await producer.connect();
  for (let batch = 0; batch < 10; batch++) {
    const messages = Array.from({ length: 10 }, (_, n) => ({ key: `key ${n}`, value: `value ${batch} ${n}` }));
    await producer.send({ topic: 'kafkajs', compression: CompressionTypes.GZIP, messages });
  }
  await producer.disconnect();
  const ends = await admin.fetchTopicOffsets('kafkajs');
  assert.equal(ends.reduce((sum, { high }) => sum + Number(high), 0), 100);

  const consumer = kafka.consumer({ groupId: 'kafkajs' });
  await consumer.connect();
  await consumer.subscribe({ topic: 'kafkajs', fromBeginning: true });
  const values = new Set();
  await new Promise((resolve) => consumer.run({
    eachMessage: async ({ message }) => {
      values.add(message.value.toString());
      if (values.size === 100) resolve();
    },
  }));
  const { groups: [group] } = await admin.describeGroups(['kafkajs']);
  assert.deepEqual([group.state, group.members.length], ['Stable', 1]);
  await consumer.disconnect();
  const [{ partitions }] = await admin.fetchOffsets({ groupId: 'kafkajs', topics: ['kafkajs'] });
  assert.equal(partitions.reduce((sum, { offset }) => sum + Number(offset), 0), 100);

  await admin.deleteGroups(['kafkajs']);
  await admin.deleteTopics({ topics: ['kafkajs'] });
  await admin.disconnect();
  console.log('OK');
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
