// Writes the topics of tests/golden/kafka through a running Kafka broker; golden.sh says how.
//
//   plain      three partitions' worth of what a producer does: all codecs, idempotence, headers, null keys and values
//   compacted  keys that were written again and again, and cleaned: offsets are missing in batches and between them
//   committed  one transaction that was committed
//   aborted    one transaction that was aborted

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Golden {
    static final long TIME = 1_700_000_000_000L;

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> base = Map.of("bootstrap.servers", arguments[0]);
        try (Admin admin = Admin.create(base)) {
            admin.createTopics(List.of(
                new NewTopic("plain", 2, (short) 1).configs(Map.of("internal.segment.bytes", "4096", "retention.ms", "-1")),
                new NewTopic("compacted", 1, (short) 1).configs(Map.of(
                    "cleanup.policy", "compact", "internal.segment.bytes", "2048", "min.cleanable.dirty.ratio", "0.01",
                    "min.compaction.lag.ms", "0", "delete.retention.ms", "0")),
                new NewTopic("committed", 1, (short) 1).configs(Map.of("retention.ms", "-1")),
                new NewTopic("aborted", 1, (short) 1).configs(Map.of("retention.ms", "-1")))).all().get();
        }
        int number = 0;
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (var producer = producer(base, codec, null)) {
                for (int n = 0; n < 20; n++) {
                    producer.send(record("plain", number % 2, number, number % 7 == 0 ? null : "key " + number));
                    number++;
                    if (n % 5 == 4) {
                        producer.flush();
                    }
                }
            }
        }
        try (var producer = producer(base, "none", null)) {
            for (int n = 0; n < 120; n++) {
                producer.send(record("compacted", 0, n, "key " + (n % 40 < 30 ? n % 3 : n)));
                if (n % 4 == 3) {
                    producer.flush();
                }
            }
        }
        for (String topic : List.of("committed", "aborted")) {
            try (var producer = producer(base, "none", topic)) {
                producer.initTransactions();
                producer.beginTransaction();
                for (int n = 0; n < 5; n++) {
                    producer.send(record(topic, 0, n, "key"));
                }
                producer.flush();
                if (topic.equals("committed")) {
                    producer.commitTransaction();
                } else {
                    producer.abortTransaction();
                }
            }
        }
        // The cleaner works by itself; the broker is stopped when it is done.
        Thread.sleep(6_000);
        System.out.println("OK");
    }

    static KafkaProducer<byte[], byte[]> producer(Map<String, Object> base, String codec, String transactional) {
        Map<String, Object> settings = new HashMap<>(base);
        settings.put("compression.type", codec);
        settings.put("linger.ms", 50);
        if (transactional != null) {
            settings.put("transactional.id", transactional);
        }
        return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static ProducerRecord<byte[], byte[]> record(String topic, int partition, int n, String key) {
        byte[] value = n % 11 == 10 ? null : bytes("value " + n + " " + "x".repeat(n % 50));
        var headers = n % 3 == 0 ? List.of(new RecordHeader("n", bytes("" + n)), new RecordHeader("none", (byte[]) null)) : null;
        return new ProducerRecord<>(topic, partition, TIME + n, key == null ? null : bytes(key), value, headers == null ? null : List.copyOf(headers));
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
