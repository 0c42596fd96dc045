// Runs the network on Android: implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")
// Put /*MODEL_FILE*/ and labels.txt into src/main/assets.
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import android.graphics.Bitmap
import java.nio.FloatBuffer
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt

data class Score(val label: String, val value: Float)

class Network(context: Context) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val session: OrtSession =
        environment.createSession(context.assets.open("/*MODEL_FILE*/").readBytes())

    /** The three best classes of an image. */
    fun classify(image: Bitmap): List<Score> {
        val shape = if (CHANNELS_LAST) longArrayOf(1, HEIGHT, WIDTH, CHANNELS) else longArrayOf(1, CHANNELS, HEIGHT, WIDTH)
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(prepared(image)), shape).use { input ->
            session.run(mapOf(session.inputNames.first() to input)).use { found ->
                val scores = (found[0] as OnnxTensor).floatBuffer.let { buffer -> FloatArray(buffer.remaining()) { buffer.get() } }
                return scores.indices.sortedByDescending { scores[it] }.take(3)
                    .map { Score(labels.getOrElse(it) { _ -> it.toString() }, scores[it]) }
            }
        }
    }

    override fun close() = session.close()

    /** Scaled to cover the input, the middle cut out, numbers as the network expects them. */
    private fun prepared(image: Bitmap): FloatArray {
        val height = HEIGHT.toInt()
        val width = WIDTH.toInt()
        val channels = CHANNELS.toInt()
        val small = if (CROP > 0) {
            val scale = max(floor(width / CROP + 1e-6) / image.width, floor(height / CROP + 1e-6) / image.height)
            val left = (((image.width * scale).roundToInt() - width) / 2 / scale).toInt()
            val top = (((image.height * scale).roundToInt() - height) / 2 / scale).toInt()
            val cut = Bitmap.createBitmap(
                image, left, top,
                min(image.width - left, (width / scale).roundToInt()), min(image.height - top, (height / scale).roundToInt()),
            )
            Bitmap.createScaledBitmap(cut, width, height, true)
        } else {
            Bitmap.createScaledBitmap(image, width, height, true)
        }
        val pixels = IntArray(width * height)
        small.getPixels(pixels, 0, width, 0, 0, width, height)
        val x = FloatArray(channels * width * height)
        for (i in pixels.indices) {
            val rgb = floatArrayOf((pixels[i] shr 16 and 255).toFloat(), (pixels[i] shr 8 and 255).toFloat(), (pixels[i] and 255).toFloat())
            for (c in 0 until channels) {
                val value = if (channels == 1) 0.299f * rgb[0] + 0.587f * rgb[1] + 0.114f * rgb[2] else rgb[if (BGR) 2 - c else c]
                x[if (CHANNELS_LAST) i * channels + c else c * width * height + i] = (value / 255f - MEAN[c]) / STD[c]
            }
        }
        return x
    }

    private companion object {
        const val HEIGHT = /*HEIGHT*/L
        const val WIDTH = /*WIDTH*/L
        const val CHANNELS = /*CHANNELS*/L
        const val BGR = /*BGR*/
        const val CHANNELS_LAST = /*CHANNELS_LAST*/
        const val CROP = /*CROP*/ // 0.0: the whole image is scaled
        val MEAN = floatArrayOf(/*MEAN*/)
        val STD = floatArrayOf(/*STD*/)
    }
}
