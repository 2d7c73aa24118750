// Writes what a segment may hold: every codec with the idempotence that is the default, keys that repeat as in a compacted topic,
// headers, no keys, no values.

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.StringSerializer;

public class Write {
    public static void main(String[] arguments) throws Exception {
        int number = 0;
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            Map<String, Object> settings = new HashMap<>(Map.of(
                "bootstrap.servers", arguments[0], "compression.type", codec, "linger.ms", 20, "batch.size", 4096));
            try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
                for (int n = 0; n < 200; n++, number++) {
                    String key = number % 13 == 12 ? null : "key " + number % 10;
                    String value = number % 17 == 16 ? null : "value " + number;
                    List<Header> headers = List.of(new RecordHeader("number", ("" + number).getBytes(StandardCharsets.UTF_8)));
                    producer.send(new ProducerRecord<>("dump", 0, (long) number, key, value, headers));
                }
            }
        }
        System.out.println("OK");
    }
}
