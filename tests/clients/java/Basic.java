// Kafka's own client: every codec with the idempotence that is its default, a group, administration.

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TransactionalIdAuthorizationException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Basic {
    static final String TOPIC = "java";
    static final int COUNT = 1000;
    static final TopicPartition FIRST = new TopicPartition(TOPIC, 0);

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> base = Map.of("bootstrap.servers", arguments[0]);
        try (Admin admin = Admin.create(base)) {
            check(admin.describeCluster().nodes().get().size() == 1, "one node");
            admin.createTopics(List.of(new NewTopic(TOPIC, 3, (short) 1))).all().get();
            check(admin.describeTopics(List.of(TOPIC)).allTopicNames().get().get(TOPIC).partitions().size() == 3, "3 partitions");
            List<String> codecs = List.of("none", "gzip", "snappy", "lz4", "zstd");
            for (String codec : codecs) {
                produce(base, codec);
            }
            check(consume(base, codecs.size() * COUNT, 20) == codecs.size() * COUNT, "all records");
            check(consume(base, 1, 1) == 0, "the next member goes on at the commits");
            var greatest = admin.listOffsets(Map.of(FIRST, OffsetSpec.maxTimestamp())).all().get().get(FIRST);
            var producers = admin.describeProducers(List.of(FIRST)).all().get().get(FIRST).activeProducers();
            check(!producers.isEmpty() && producers.stream().allMatch(one -> one.lastSequence() >= 0), "producers");
            check(greatest.offset() > 0 && greatest.leaderEpoch().isPresent(), "greatest timestamp");
            check(admin.listConsumerGroupOffsets("java").partitionsToOffsetAndMetadata().get().size() == 3, "commits");
            admin.deleteConsumerGroups(List.of("java")).all().get();
            admin.deleteTopics(List.of(TOPIC)).all().get();
        }
        refuseTransactions(base);
        System.out.println("OK");
    }

    static void produce(Map<String, Object> base, String codec) throws ExecutionException, InterruptedException {
        Map<String, Object> settings = new HashMap<>(base);
        settings.put("compression.type", codec);
        settings.put("linger.ms", 5);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (int n = 0; n < COUNT; n++) {
                sent.add(producer.send(new ProducerRecord<>(TOPIC, "key " + n, "value " + n)));
            }
            for (var record : sent) {
                record.get();
            }
        }
    }

    static int consume(Map<String, Object> base, int wanted, int seconds) {
        Map<String, Object> settings = new HashMap<>(base);
        settings.put("group.id", "java");
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        long end = System.nanoTime() + Duration.ofSeconds(seconds).toNanos();
        int found = 0;
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(TOPIC));
            while (found < wanted && System.nanoTime() < end) {
                found += consumer.poll(Duration.ofMillis(100)).count();
            }
            consumer.commitSync();
            check(consumer.offsetsForTimes(Map.of(FIRST, 0L)).get(FIRST).offset() == 0, "offset by time");
        }
        return found;
    }

    static void refuseTransactions(Map<String, Object> base) {
        Map<String, Object> settings = new HashMap<>(base);
        settings.put("transactional.id", "java");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            producer.initTransactions();
            check(false, "transactions are refused");
        } catch (TransactionalIdAuthorizationException expected) {
            // As it should be: at once, and with a name.
        }
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
